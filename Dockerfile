# The image of podkv: one program, no shell, not root; for amd64 and arm64.
#
#   make image
#   make image IMAGE=registry.example.com/podkv:0.1.0 IMAGE_FLAGS="--platform linux/amd64,linux/arm64 --push"
#
#   toolchain ─► target-ARCH ─► target ─┬─► rocksdb-crate ─► rocksdb-build ─► rocksdb ─┐
#                                       └──────────────────► build ◄───────────────────┘
#                                                              └─► podkv (last: the image), flags (an example)
#
# It needs BuildKit (the default since Docker 23): cache mounts, and the platform arguments.
#
# Everything up to the image runs on the architecture of the machine that builds, and compiles for that of the
# image: under emulation RocksDB alone would take hours. What is kept between builds:
# - RocksDB's archive, a layer of its own. It is compiled again when RocksDB, Rust or the flags change, not
#   before; and it can be given from outside, as a folder that holds librocksdb.a for the image's architecture:
#       make image IMAGE_FLAGS="--build-context rocksdb=$HOME/.cache/podkv/rocksdb-…"
# - cargo's downloads and its target folder, in cache mounts: only our own crates are compiled again.

# The version in rust-toolchain.toml; `make manifests` compares them.
ARG RUST_VERSION=1.95.0

FROM --platform=$BUILDPLATFORM rust:${RUST_VERSION}-slim-bookworm AS toolchain
ARG RUST_VERSION
# Else rustup would follow rust-toolchain.toml and fetch the lints as well.
ENV RUSTUP_TOOLCHAIN=${RUST_VERSION}
WORKDIR /podkv

# An architecture that is not here stops the build by its name.
FROM toolchain AS target-amd64
ENV TRIPLE=x86_64-unknown-linux-gnu GNU=x86_64-linux-gnu CROSS=x86-64-linux-gnu
FROM toolchain AS target-arm64
ENV TRIPLE=aarch64-unknown-linux-gnu GNU=aarch64-linux-gnu CROSS=aarch64-linux-gnu

FROM target-${TARGETARCH} AS target
ARG BUILDARCH
ARG TARGETARCH
# clang only reads RocksDB's header for the bindings; gcc compiles.
RUN set -eu; \
    compiler=g++; \
    [ "$BUILDARCH" = "$TARGETARCH" ] || compiler="g++-$CROSS"; \
    apt-get update -qq; \
    apt-get install -y -qq --no-install-recommends clang libclang-dev "$compiler" >/dev/null; \
    rm -rf /var/lib/apt/lists/*; \
    [ "$BUILDARCH" = "$TARGETARCH" ] || rustup target add "$TRIPLE"; \
    # Debian's gcc has its full name at home too.
    printf '[target.%s]\nlinker = "%s-gcc"\n' "$TRIPLE" "$GNU" > "$CARGO_HOME/config.toml"

# A crate that depends on nothing but RocksDB, with what Cargo.lock says of that. It comes out the same as
# long as these lines do, and what is copied from it is compared by its bytes.
FROM target AS rocksdb-crate
COPY Cargo.toml Cargo.lock /workspace/
RUN --mount=type=cache,id=podkv-cargo,target=/usr/local/cargo/registry \
    set -eu; \
    mkdir src; \
    touch src/lib.rs; \
    cp /workspace/Cargo.lock .; \
    printf '[package]\nname = "rocksdb-alone"\nversion = "0.0.0"\nedition = "2024"\n[dependencies]\n' > Cargo.toml; \
    grep '^rocksdb = ' /workspace/Cargo.toml >> Cargo.toml; \
    # Drops from the lock file what this crate does not need, and changes nothing else.
    cargo metadata --format-version 1 > /dev/null

FROM target AS rocksdb-build
COPY --from=rocksdb-crate /podkv /podkv
COPY .cargo/config.toml .cargo/
RUN --mount=type=cache,id=podkv-cargo,target=/usr/local/cargo/registry \
    set -eu; \
    echo "Compiling RocksDB: 10 to 20 minutes on two cores. It is kept."; \
    cargo build --quiet --locked --release --target "$TRIPLE" -p librocksdb-sys; \
    cp target/"$TRIPLE"/release/build/librocksdb-sys-*/out/librocksdb.a /; \
    rm -rf target

FROM scratch AS rocksdb
COPY --from=rocksdb-build /librocksdb.a /

FROM target AS source
ENV ROCKSDB_LIB_DIR=/rocksdb ROCKSDB_STATIC=1
COPY --from=rocksdb /librocksdb.a /rocksdb/
COPY . .
# cargo goes by time stamps, and those of a checkout may be older than what the cache holds.
RUN find crates -name '*.rs' -exec touch {} +

FROM source AS build
RUN --mount=type=cache,id=podkv-cargo,target=/usr/local/cargo/registry \
    --mount=type=cache,id=podkv-target,target=/podkv/target,sharing=locked \
    set -eu; \
    cargo build --locked --release --target "$TRIPLE" -p podkv-server --bin podkv; \
    mkdir -p /out/data; \
    # Names of functions stay, for backtraces; line numbers go.
    "$GNU-strip" --strip-debug -o /out/podkv target/"$TRIPLE"/release/podkv

FROM source AS build-flags
RUN --mount=type=cache,id=podkv-cargo,target=/usr/local/cargo/registry \
    --mount=type=cache,id=podkv-target,target=/podkv/target,sharing=locked \
    set -eu; \
    cargo build --locked --release --target "$TRIPLE" -p podkv --features embed --example flags; \
    mkdir -p /out/data; \
    "$GNU-strip" --strip-debug -o /out/flags target/"$TRIPLE"/release/examples/flags

# distroless: libc, libgcc, libstdc++ (RocksDB), certificates, and nothing else that could be run or would need
# patches: no shell, no package manager. `kubectl debug` brings tools when they are needed.
# Its libc is the one of the build (Debian 12). `nonroot` is user and group 65532.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
# By number: runAsNonRoot cannot judge a name.
USER 65532:65532

# The example that embeds podkv (crates/podkv/examples/flags): make image-flags
FROM runtime AS flags
COPY --from=build-flags --chown=65532:65532 /out/data /var/lib/podkv
COPY --from=build-flags /out/flags /usr/local/bin/flags
EXPOSE 8080 2380
ENTRYPOINT ["/usr/local/bin/flags"]
CMD ["serve"]

FROM runtime AS podkv
LABEL org.opencontainers.image.title="podkv" \
      org.opencontainers.image.description="A replicated key-value store that lives inside pods" \
      org.opencontainers.image.licenses="Apache-2.0"
# So that a new volume of plain Docker, mounted here, belongs to this user.
COPY --from=build --chown=65532:65532 /out/data /var/lib/podkv
COPY LICENSE /usr/share/doc/podkv/LICENSE
COPY --from=build /out/podkv /usr/local/bin/podkv
EXPOSE 2379 2380 2381
# Without an argument it tells its commands; `serve` runs a node.
ENTRYPOINT ["/usr/local/bin/podkv"]

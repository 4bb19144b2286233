//! The half of a wrapped byte stream that is only passed on.

/// `AsyncWrite` for a stream that does something of its own when it is read from, and passes on what is written.
///
/// Vectored writes too: HTTP/2 writes frame heads and bodies apart, and without them each would be copied together, or
/// sent by itself. Leaving them out is easily done, and shows only in throughput.
///
/// ```ignore
/// podkv_tls::pass_writes_on!([S: AsyncWrite + Unpin] FirstByte<S>, io);
/// ```
#[macro_export]
macro_rules! pass_writes_on {
    ([$($generics:tt)*] $stream:ty, $inner:ident) => {
        impl<$($generics)*> ::tokio::io::AsyncWrite for $stream {
            fn poll_write(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                bytes: &[u8],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                ::std::pin::Pin::new(&mut self.$inner).poll_write(cx, bytes)
            }

            fn poll_flush(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.$inner).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<()>> {
                ::std::pin::Pin::new(&mut self.$inner).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: ::std::pin::Pin<&mut Self>,
                cx: &mut ::std::task::Context<'_>,
                buffers: &[::std::io::IoSlice<'_>],
            ) -> ::std::task::Poll<::std::io::Result<usize>> {
                ::std::pin::Pin::new(&mut self.$inner).poll_write_vectored(cx, buffers)
            }

            fn is_write_vectored(&self) -> bool {
                ::tokio::io::AsyncWrite::is_write_vectored(&self.$inner)
            }
        }
    };
}

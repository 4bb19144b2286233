//! podkv's protocols: code generated from `/proto`, and the conversions between its messages and
//! the types of `podkv-api`.
//!
//! Clients and nodes both convert, so it is done here, once. There is no other logic.

pub mod convert;

/// For clients: `proto/podkv/v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated code")]
pub mod v1 {
    tonic::include_proto!("podkv.v1");

    /// The services and messages of this module, for gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("podkv.v1");
}

/// etcd's v3 API: `proto/etcd`. The packages have etcd's names, which are part of the wire.
#[cfg(feature = "etcd")]
#[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated code")]
pub mod etcd {
    pub mod authpb {
        tonic::include_proto!("authpb");
    }
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    pub mod v3electionpb {
        tonic::include_proto!("v3electionpb");
    }

    /// The services and messages of these modules, for gRPC reflection and for JSON.
    pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("etcd");
}

/// Between nodes: `proto/podkv/peer/v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated code")]
pub mod peer {
    tonic::include_proto!("podkv.peer.v1");
}

/// What `grpc-status-details-bin` holds: `proto/google/rpc/status.proto`.
#[allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated code")]
pub mod rpc {
    tonic::include_proto!("google.rpc");
}

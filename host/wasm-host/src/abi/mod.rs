//! The application binary interface: numbers, serialisation, and the host functions themselves.

pub(crate) mod buffers;
pub(crate) mod call;
pub(crate) mod callouts;
pub(crate) mod general;
pub(crate) mod grpc;
pub(crate) mod imports;
pub(crate) mod maps;
pub(crate) mod metrics;
pub mod pairs;
pub(crate) mod shared;
pub(crate) mod wasi;

/// Result of a host call, as a guest sees it (`WasmResult` of the C++ host).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Status {
    /// The call did what was asked.
    Ok = 0,
    /// No such key, queue, metric, context or function.
    NotFound = 1,
    /// An argument out of range, or a map or buffer that is not there in this phase.
    BadArgument = 2,
    /// A property that has no bytes, for example an absent value at an empty path.
    SerializationFailure = 3,
    /// The name of a gRPC service is neither a message nor a known cluster.
    ParseFailure = 4,
    /// Of the CEL functions, which this host does not have.
    BadExpression = 5,
    /// A pointer and length outside the guest's memory, or its allocator refused.
    InvalidMemoryAccess = 6,
    /// A queue without entries.
    Empty = 7,
    /// Compare-and-swap with a number that is not the current one.
    CasMismatch = 8,
    /// Unused by Envoy.
    ResultMismatch = 9,
    /// Refused by the allow-list, or by one of this host's own limits.
    InternalFailure = 10,
    /// The stream's peer is gone.
    BrokenConnection = 11,
    /// Envoy does not do this.
    Unimplemented = 12,
}

/// Which header map a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Request headers.
    RequestHeaders,
    /// Request trailers.
    RequestTrailers,
    /// Response headers.
    ResponseHeaders,
    /// Response trailers.
    ResponseTrailers,
    /// First metadata of a gRPC callout.
    GrpcInitial,
    /// Last metadata of a gRPC callout.
    GrpcTrailing,
    /// Headers of an HTTP callout's response.
    CallHeaders,
    /// Trailers of an HTTP callout's response.
    CallTrailers,
}

impl MapKind {
    pub(crate) fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::RequestHeaders,
            1 => Self::RequestTrailers,
            2 => Self::ResponseHeaders,
            3 => Self::ResponseTrailers,
            4 => Self::GrpcInitial,
            5 => Self::GrpcTrailing,
            6 => Self::CallHeaders,
            7 => Self::CallTrailers,
            _ => return None,
        })
    }
}

/// Which buffer a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferKind {
    /// Body of the request.
    RequestBody,
    /// Body of the response.
    ResponseBody,
    /// Bytes of a TCP stream; always empty here, as this host runs HTTP filters.
    Downstream,
    /// Bytes of a TCP stream; always empty here, as this host runs HTTP filters.
    Upstream,
    /// Body of an HTTP callout's response.
    CallBody,
    /// Message of a gRPC callout.
    GrpcReceive,
    /// Configuration of the virtual machine.
    VmConfiguration,
    /// Configuration of the plugin.
    PluginConfiguration,
    /// Data of a foreign call; always empty, as in Envoy outside its own extensions.
    CallData,
}

impl BufferKind {
    pub(crate) fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::RequestBody,
            1 => Self::ResponseBody,
            2 => Self::Downstream,
            3 => Self::Upstream,
            4 => Self::CallBody,
            5 => Self::GrpcReceive,
            6 => Self::VmConfiguration,
            7 => Self::PluginConfiguration,
            8 => Self::CallData,
            _ => return None,
        })
    }
}

/// Version of the ABI that a module says it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbiVersion {
    /// `proxy_abi_version_0_2_0`.
    V0_2_0,
    /// `proxy_abi_version_0_2_1`.
    V0_2_1,
}

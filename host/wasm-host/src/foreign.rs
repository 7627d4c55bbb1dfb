//! Foreign functions: those of Envoy that need nothing but the stream, and the embedder's own.

use crate::abi::Status;
use std::sync::Arc;

/// A function that guests call by name with bytes, and that answers with bytes.
///
/// # Errors
/// Any [`Status`] but `Ok`; the guest gets it as the result of its call.
pub type ForeignFunction = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, Status> + Send + Sync>;

/// `declare_property`'s argument: how a property of that name behaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PropertyDeclaration {
    pub(crate) name: Vec<u8>,
    pub(crate) readonly: bool,
}

/// `set_envoy_filter_state`'s argument.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilterStateArgument {
    pub(crate) path: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// Fields of a protobuf message; `None` if it is malformed. Fixed-width fields are skipped.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (tag, rest) = varint(bytes)?;
        bytes = rest;
        let number = tag >> 3;
        match tag & 7 {
            0 => {
                let (value, rest) = varint(bytes)?;
                bytes = rest;
                fields.push((number, Field::Varint(value)));
            }
            1 => bytes = bytes.get(8..)?,
            2 => {
                let (len, rest) = varint(bytes)?;
                let len = usize::try_from(len).ok()?;
                fields.push((number, Field::Bytes(rest.get(..len)?)));
                bytes = rest.get(len..)?;
            }
            5 => bytes = bytes.get(4..)?,
            _ => return None,
        }
    }
    Some(fields)
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i).min(63);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(i + 1..)?));
        }
    }
    None
}

/// `envoy.source.extensions.common.wasm.DeclarePropertyArguments`: name 1, readonly 2.
pub(crate) fn property_declaration(bytes: &[u8]) -> Option<PropertyDeclaration> {
    let mut declaration = PropertyDeclaration::default();
    for (number, field) in fields(bytes)? {
        match (number, field) {
            (1, Field::Bytes(name)) => declaration.name = name.to_vec(),
            (2, Field::Varint(readonly)) => declaration.readonly = readonly != 0,
            _ => {}
        }
    }
    Some(declaration)
}

/// `envoy.source.extensions.common.wasm.SetEnvoyFilterStateArguments`: path 1, value 2.
pub(crate) fn filter_state_argument(bytes: &[u8]) -> Option<FilterStateArgument> {
    let mut argument = FilterStateArgument::default();
    for (number, field) in fields(bytes)? {
        match (number, field) {
            (1, Field::Bytes(path)) => argument.path = path.to_vec(),
            (2, Field::Bytes(value)) => argument.value = value.to_vec(),
            _ => {}
        }
    }
    Some(argument)
}

/// Filter state that Envoy lets a guest create: names with a factory in its official build that take
/// any bytes or an address.
pub(crate) const FILTER_STATE_FACTORIES: [&[u8]; 8] = [
    b"envoy.filters.listener.original_dst.local_ip",
    b"envoy.filters.listener.original_dst.remote_ip",
    b"envoy.network.transport_socket.original_dst_address",
    b"envoy.network.upstream_server_name",
    b"envoy.tcp_proxy.cluster",
    b"envoy.upstream.dynamic_host",
    b"envoy.upstream.dynamic_port",
    b"envoy.hashable_string",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_as_protoc_writes_them() {
        // protoc --encode of {path: "a", value: "bc", span: 1}.
        let bytes = b"\x0a\x01a\x12\x02bc\x18\x01";
        let expected = FilterStateArgument { path: b"a".to_vec(), value: b"bc".to_vec() };
        assert_eq!(filter_state_argument(bytes), Some(expected));
        // {name: "p", readonly: true, type: String (1)}.
        let expected = PropertyDeclaration { name: b"p".to_vec(), readonly: true };
        assert_eq!(property_declaration(b"\x0a\x01p\x10\x01\x18\x01"), Some(expected));
        for cut in 1..bytes.len() {
            filter_state_argument(&bytes[..cut]);
        }
        assert_eq!(filter_state_argument(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), None);
        assert_eq!(filter_state_argument(b"\x0a\x05a"), None);
    }
}

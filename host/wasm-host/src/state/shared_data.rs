//! Shared data: values by (`vm_id`, key), each with a number for compare-and-swap.

use crate::abi::Status;
use std::collections::{BTreeMap, HashMap};

type Values = HashMap<Vec<u8>, (Vec<u8>, u32)>;

pub(crate) struct SharedData {
    by_vm_id: BTreeMap<String, Values>,
    last_cas: u32,
    bytes: usize,
    limit_bytes: usize,
}

impl SharedData {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { by_vm_id: BTreeMap::new(), last_cas: 0, bytes: 0, limit_bytes }
    }

    pub(crate) fn get(&self, vm_id: &str, key: &[u8]) -> Option<(&[u8], u32)> {
        let (value, cas) = self.by_vm_id.get(vm_id)?.get(key)?;
        Some((value, *cas))
    }

    /// A number that does not match refuses only to replace: on a missing key it creates, as in Envoy.
    pub(crate) fn set(
        &mut self,
        vm_id: &str,
        key: &[u8],
        value: &[u8],
        cas: u32,
    ) -> Result<(), Status> {
        let present = self.by_vm_id.get(vm_id).and_then(|values| values.get(key));
        if present.is_some_and(|(_, current)| cas != 0 && cas != *current) {
            return Err(Status::CasMismatch);
        }
        let freed = present.map_or(0, |(old, _)| key.len() + old.len());
        let bytes = self.bytes - freed + key.len() + value.len();
        if bytes > self.limit_bytes {
            return Err(Status::InternalFailure);
        }
        self.bytes = bytes;
        // Zero means "whatever is there", so it is never a value's number.
        self.last_cas = self.last_cas.checked_add(1).unwrap_or(1);
        let values = self.by_vm_id.entry(vm_id.to_owned()).or_default();
        values.insert(key.to_vec(), (value.to_vec(), self.last_cas));
        Ok(())
    }

    pub(crate) fn remove(&mut self, vm_id: &str, key: &[u8]) -> bool {
        let values = self.by_vm_id.get_mut(vm_id);
        let Some((value, _)) = values.and_then(|values| values.remove(key)) else { return false };
        self.bytes -= key.len() + value.len();
        true
    }

    pub(crate) fn keys(&self, vm_id: &str) -> Vec<Vec<u8>> {
        let mut keys: Vec<_> = self
            .by_vm_id
            .get(vm_id)
            .into_iter()
            .flat_map(|values| values.keys().cloned())
            .collect();
        keys.sort();
        keys
    }

    pub(crate) fn erase(&mut self, vm_id: &str) {
        let values = self.by_vm_id.remove(vm_id).unwrap_or_default();
        self.bytes -= values.iter().map(|(key, (value, _))| key.len() + value.len()).sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compare_and_swap_as_in_envoy() {
        let mut data = SharedData::new(100);
        // Creates if absent, whatever the number.
        assert_eq!(data.set("v", b"k", b"1", 77), Ok(()));
        assert_eq!(data.set("v", b"k", b"2", 77), Err(Status::CasMismatch));
        let (value, cas) = data.get("v", b"k").unwrap();
        assert_eq!((value, cas != 0), (b"1".as_slice(), true));
        assert_eq!(data.set("v", b"k", b"2", cas), Ok(()));
        assert_eq!(data.set("v", b"k", b"3", cas), Err(Status::CasMismatch));
        assert_eq!(data.set("v", b"k", b"4", 0), Ok(()));
        assert_eq!(data.get("v", b"k").unwrap().0, b"4");
        assert_eq!(data.get("other", b"k"), None);
    }

    #[test]
    fn bytes_are_bounded_and_replaced_ones_are_free() {
        let mut data = SharedData::new(10);
        assert_eq!(data.set("v", b"k", &[0; 9], 0), Ok(()));
        assert_eq!(data.set("v", b"k", &[1; 9], 0), Ok(()));
        assert_eq!(data.set("v", b"l", b"", 0), Err(Status::InternalFailure));
        assert!(data.remove("v", b"k"));
        assert_eq!(data.set("w", b"l", &[0; 9], 0), Ok(()));
        data.erase("w");
        assert_eq!(data.set("v", b"l", &[0; 9], 0), Ok(()));
        assert_eq!(data.keys("v"), [b"l"]);
    }
}

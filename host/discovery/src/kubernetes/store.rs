//! The objects that a watch has told of.

use std::collections::BTreeMap;

use super::objects::Object;

/// Objects of one namespace by name.
#[derive(Clone, Debug)]
pub(super) struct Store<T> {
    objects: BTreeMap<String, T>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new() }
    }
}

impl<T: Object> Store<T> {
    /// These are all.
    pub(super) fn replace(&mut self, all: Vec<T>) {
        self.objects =
            all.into_iter().map(|object| (object.metadata().name.clone(), object)).collect();
    }

    /// The object is new or another.
    pub(super) fn put(&mut self, object: T) {
        self.objects.insert(object.metadata().name.clone(), object);
    }

    /// The object is gone. One that has come by the same name since is not.
    pub(super) fn delete(&mut self, object: &T) {
        let gone = object.metadata();
        let is_it = |held: &T| held.metadata().uid == gone.uid;
        if self.objects.get(&gone.name).is_some_and(is_it) {
            self.objects.remove(&gone.name);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.objects.values()
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.objects.get(name)
    }
}

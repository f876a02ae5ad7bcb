//! Recent events in the forms in which watches have told them, so that each is made once and not
//! once per watch.
//!
//! Objects in the version in which they are stored are bytes that go out as they are; this is for
//! tables, metadata alone, and other versions.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::object::Object;
use super::request::Shape;
use super::resource::Resource;
use super::table::Include;

/// Bytes of forms that are kept; watches that are further apart make their own.
const BYTES_MAX: usize = 8 << 20;

/// An object's version is the only one of its number in the whole cluster.
type Key = (u64, Box<str>, Shape, Include);

#[derive(Default)]
pub(super) struct Renderings(Mutex<State>);

#[derive(Default)]
struct State {
    made: HashMap<Key, Bytes>,
    order: VecDeque<Key>,
    bytes: usize,
}

impl Renderings {
    /// The form of an object, made by `make` if it is not known.
    pub(super) fn of(
        &self,
        resource: &Resource,
        object: &Object,
        shape: Shape,
        include: Include,
        make: impl FnOnce() -> Bytes,
    ) -> Bytes {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let version = resource.api_version().into();
        let key: Key = (object.resource_version, version, shape, include);
        if let Some(known) = lock().made.get(&key) {
            return known.clone();
        }
        // Two that make the same at once make the same bytes.
        let bytes = make();
        let mut state = lock();
        if state.made.insert(key.clone(), bytes.clone()).is_none() {
            state.order.push_back(key);
            state.bytes += bytes.len();
        }
        while state.bytes > BYTES_MAX {
            let Some(oldest) = state.order.pop_front() else { break };
            let gone = state.made.remove(&oldest).map_or(0, |bytes| bytes.len());
            state.bytes -= gone;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::resource::Catalog;
    use serde_json::json;

    #[test]
    fn a_form_is_made_once_and_not_kept_for_ever() {
        let catalog = Catalog::built_in();
        let resource = catalog.by_id("pods").unwrap();
        let object =
            |version| Object::new(&mut json!({ "metadata": { "name": "p" } }), version, &[]);
        let renderings = Renderings::default();
        let mut made = 0;
        let mut ask = |version: u64, shape: Shape| {
            let make = || {
                made += 1;
                vec![0; 1 << 20].into()
            };
            renderings.of(resource, &object(version), shape, Include::Metadata, make);
            made
        };
        assert_eq!([ask(1, Shape::Table), ask(1, Shape::Table), ask(1, Shape::Partial)], [1, 1, 2]);
        for version in 2..=9 {
            ask(version, Shape::Table);
        }
        assert_eq!((ask(9, Shape::Table), ask(1, Shape::Table)), (10, 11));
    }
}

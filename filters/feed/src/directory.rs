//! The directory: which names requests may use, and where their values lie.

use crate::WireError;
use crate::values::{open, start};
use crate::wire::Writer;

/// Most LoRA adapters of one (pool, model) pair: with names of 60 bytes a fifth of a singleton.
pub const MAX_ADAPTERS: usize = 256;

/// Which (pool, model) pairs there are and under which scope their values lie.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Directory {
    /// Writer's epoch.
    pub epoch: u64,
    /// All pairs, at most one per (pool, model).
    pub entries: Vec<DirectoryEntry>,
}

/// One (pool, model) pair.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirectoryEntry {
    /// Number used in keys.
    pub scope: u16,
    /// Pool name, which is the proxy's cluster name.
    pub pool: String,
    /// Canonical model name.
    pub model: String,
    /// Other names that requests may use.
    pub aliases: Vec<String>,
    /// LoRA adapters, by the names that requests and events use.
    pub adapters: Vec<String>,
    /// Scope of the buckets over token ids, where the pool keeps them.
    pub token_ids_scope: Option<u16>,
}

impl DirectoryEntry {
    fn is_called(&self, name: &str) -> bool {
        self.model == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// "No scope" on the wire.
const NO_SCOPE: u16 = u16::MAX;

impl Directory {
    /// The pair that serves `name` in `pool`, and the adapter if `name` is one. A model's own name
    /// or alias wins over an adapter's; an adapter of two models of the pool is neither's.
    ///
    /// Adapters are named as vLLM does, by themselves, or as SGLang does, `MODEL:ADAPTER`.
    pub fn find<'a>(
        &'a self,
        pool: &str,
        name: &'a str,
    ) -> Option<(&'a DirectoryEntry, Option<&'a str>)> {
        let mut own = self.entries.iter().filter(|entry| entry.pool == pool);
        if let Some(entry) = own.clone().find(|entry| entry.is_called(name)) {
            return Some((entry, None));
        }
        let has = |entry: &DirectoryEntry, adapter: &str| {
            entry.adapters.iter().any(|known| known == adapter)
        };
        let mut of_name = own.clone().filter(|entry| has(entry, name));
        if let Some(entry) = of_name.next() {
            return of_name.next().is_none().then_some((entry, Some(name)));
        }
        let (model, adapter) = name.rsplit_once(':')?;
        own.find(|entry| entry.is_called(model) && has(entry, adapter))
            .map(|entry| (entry, Some(adapter)))
    }

    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let texts = |writer: &mut Writer, list: &[String]| {
            writer.u16(list.len() as u16);
            for text in list {
                writer.text(text);
            }
        };
        let mut writer = start(b'D', self.epoch);
        writer.u16(self.entries.len() as u16);
        for entry in &self.entries {
            writer.u16(entry.scope).text(&entry.pool).text(&entry.model);
            texts(&mut writer, &entry.aliases);
            texts(&mut writer, &entry.adapters);
            writer.u16(entry.token_ids_scope.unwrap_or(NO_SCOPE));
        }
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (epoch, mut reader) = open(b'D', bytes)?;
        let mut entries = Vec::new();
        for _ in 0..reader.u16()? {
            let scope = reader.u16()?;
            let pool = reader.text("pool")?.to_owned();
            let model = reader.text("model")?.to_owned();
            let mut aliases = Vec::new();
            for _ in 0..reader.u16()? {
                aliases.push(reader.text("alias")?.to_owned());
            }
            let mut adapters = Vec::new();
            for _ in 0..reader.u16()? {
                adapters.push(reader.text("adapter")?.to_owned());
            }
            let token_ids_scope = Some(reader.u16()?).filter(|scope| *scope != NO_SCOPE);
            entries.push(DirectoryEntry { scope, pool, model, aliases, adapters, token_ids_scope });
        }
        reader.finish()?;
        Ok(Self { epoch, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value_epoch;
    use proptest::prelude::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn directory() -> Directory {
        let entry =
            |scope, pool: &str, model: &str, aliases: &[&str], adapters: &[&str]| DirectoryEntry {
                scope,
                pool: pool.into(),
                model: model.into(),
                aliases: texts(aliases),
                adapters: texts(adapters),
                token_ids_scope: (scope == 2).then_some(7),
            };
        Directory {
            epoch: 4,
            entries: vec![
                entry(0, "a", "m", &["x"], &["sql", "x", "both"]),
                entry(1, "b", "m", &[], &["sql", "both"]),
                entry(2, "b", "n:1", &["x"], &["m", "both"]),
            ],
        }
    }

    #[test]
    fn a_name_is_a_model_an_alias_or_an_adapter_of_its_pool() {
        let directory = directory();
        let check = |pool, name, expected| {
            let found = directory.find(pool, name).map(|(entry, lora)| (entry.scope, lora));
            assert_eq!(found, expected, "{pool} {name}");
        };
        check("a", "m", Some((0, None)));
        check("b", "m", Some((1, None)));
        check("b", "x", Some((2, None)));
        check("a", "n:1", None);
        check("c", "m", None);
        check("a", "sql", Some((0, Some("sql"))));
        // The alias of that name wins.
        check("a", "x", Some((0, None)));
        // Which of the two models is meant cannot be known, but here it is said.
        check("b", "both", None);
        check("b", "m:both", Some((1, Some("both"))));
        check("b", "n:1:both", Some((2, Some("both"))));
        check("b", "x:both", Some((2, Some("both"))));
        check("b", "n:1", Some((2, None)));
        check("b", "m:unknown", None);
    }

    #[test]
    fn a_directory_round_trips() {
        let directory = directory();
        assert_eq!(Directory::decode(&directory.encode()), Ok(directory.clone()));
        assert_eq!(value_epoch(&directory.encode()), Some(4));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = vec![b'D', 1];
            framed.extend(bytes);
            let _ = Directory::decode(&framed);
        }
    }
}

//! What a daemon has told a gateway, as records of the feed.

use feed::{
    BucketEntry, BucketWriter, Directory, DirectoryEntry, EndpointEntry, Head, Key, LoadRecord,
    LoadTable, ModelValue, Table,
};
use prefix::{KeyChain, Namespace, Seed, bucket_of, fingerprint_of};
use prompt::ModelSpec;
use routing::{Load, SourceState};

/// The pool whose state this is.
pub const POOL: &str = "pool";

const SEED: Seed = Seed([9; 64]);
const EPOCH: u64 = 8;
const BUCKETS: u32 = 64;

/// A pool of one model, `m`, with the adapter `sql`.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// Number of endpoints, all ready.
    pub endpoints: u16,
    /// What they hold.
    pub held: &'a [Held<'a>],
}

/// Text that endpoints hold, as of a completion.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// The text.
    pub text: &'a str,
    /// Holders of its first strides: how many, and by which slots.
    pub strides: usize,
    /// Who holds them.
    pub slots: &'a [u16],
}

/// That the state is whole, as of that time on the gateway's monotonic clock.
pub(super) fn head(stamp_ns: u64) -> Head {
    Head { instance: 1, epoch: EPOCH, sequence: 1, is_complete: true, stamp_ns, ..Head::default() }
}

impl State<'_> {
    /// The records by key, without the head; endpoint n is `10.0.(n / 256).(n % 256):8000` with n + 1 waiting.
    pub fn records(&self) -> Vec<(Key, Vec<u8>)> {
        let odd = Key::parity(EPOCH);
        let entry = DirectoryEntry {
            scope: 0,
            pool: POOL.into(),
            model: "m".into(),
            aliases: vec!["alias".into()],
            adapters: vec!["sql".into()],
            token_ids_scope: None,
        };
        let directory = Directory { epoch: EPOCH, entries: vec![entry] };
        let endpoint = |slot: u16| EndpointEntry {
            slot,
            address: format!("10.0.{}.{}:8000", slot / 256, slot % 256),
            labels: vec![(
                "llm-d.ai/role".into(),
                ["decode", "both"][usize::from(slot % 2)].into(),
            )],
            attributes: vec![("cost".into(), f32::from(slot % 7))],
        };
        let load = |slot: u16| LoadRecord {
            slot,
            load: Load {
                is_ready: true,
                waiting: Some(u32::from(slot % 5)),
                running: Some(u32::from(slot % 9)),
                kv_usage_ratio: Some(f32::from(slot % 10) / 10.0),
            },
            source: SourceState::Live,
            block_size_tokens: 16,
            ..LoadRecord::default()
        };
        let spec = ModelSpec {
            chat_template: Some(
                "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}".into(),
            ),
            ..ModelSpec::default()
        };
        let model = ModelValue {
            epoch: EPOCH,
            seed: SEED,
            bucket_count: BUCKETS,
            bytes_per_token: 4.0,
            // A struct of strings and lists is always JSON.
            spec_json: serde_json::to_vec(&spec).unwrap_or_default(),
        };
        let table = Table { epoch: EPOCH, endpoints: (0..self.endpoints).map(endpoint).collect() };
        let loads = LoadTable { epoch: EPOCH, records: (0..self.endpoints).map(load).collect() };
        let mut records = vec![
            (Key::Directory(odd), directory.encode()),
            (Key::Table(odd, 0), table.encode()),
            (Key::Load(odd, 0), loads.encode()),
            (Key::Model(odd, 0), model.encode()),
        ];
        records.extend(self.buckets());
        records
    }

    fn buckets(&self) -> Vec<(Key, Vec<u8>)> {
        let root = Namespace { model: "m", lora: None, salt: None }.root(&SEED);
        let mut writers: Vec<_> = (0..BUCKETS).map(|_| BucketWriter::new(EPOCH)).collect();
        for held in self.held {
            let keys = KeyChain::keys_of(root, &SEED, held.text.as_bytes());
            for (key, tokens) in keys.iter().take(held.strides).zip((16u32..).step_by(16)) {
                let entry = BucketEntry {
                    fingerprint: fingerprint_of(*key),
                    tokens,
                    gpu: held.slots,
                    offloaded: &[],
                    resumes: &[],
                };
                if let Some(writer) = writers.get_mut(bucket_of(*key, BUCKETS) as usize) {
                    writer.push(entry);
                }
            }
        }
        let keys = (0..BUCKETS).map(|bucket| Key::Bucket(0, bucket));
        keys.zip(writers.into_iter().map(BucketWriter::finish)).collect()
    }
}

//! What a daemon has told a gateway, as records of the feed.

use feed::{
    BucketEntry, BucketWriter, Directory, DirectoryEntry, EndpointEntry, Head, Key, LoadRecord,
    LoadTable, ModelValue, Table,
};
use prefix::{KeyChain, Namespace, STRIDE_BYTES, Seed, bucket_of, fingerprint_of};
use prompt::ModelSpec;
use routing::{Load, SourceState};

/// The pool whose state this is.
pub const POOL: &str = "pool";

const SEED: Seed = Seed([9; 64]);
const EPOCH: u64 = 8;
const MIN_BUCKETS: u32 = 64;
const STRIDES_PER_BUCKET: usize = 16;

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
    /// The records by key, without the head, of a model with a template of one line; endpoint n is
    /// `10.0.(n / 256).(n % 256):8000`.
    pub fn records(&self) -> Vec<(Key, Vec<u8>)> {
        let spec = ModelSpec {
            chat_template: Some(
                "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}".into(),
            ),
            ..ModelSpec::default()
        };
        self.records_of(EPOCH, &spec)
    }

    /// The same as a writer of that epoch tells them, of a model of the caller's.
    pub fn records_of(&self, epoch: u64, spec: &ModelSpec) -> Vec<(Key, Vec<u8>)> {
        let odd = Key::parity(epoch);
        let entry = DirectoryEntry {
            scope: 0,
            pool: POOL.into(),
            model: "m".into(),
            aliases: vec!["alias".into()],
            adapters: vec!["sql".into()],
            token_ids_scope: None,
        };
        let directory = Directory { epoch, entries: vec![entry] };
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
        let bucket_count = self.bucket_count();
        let model = ModelValue {
            epoch,
            seed: SEED,
            bucket_count,
            bytes_per_token: 4.0,
            // A struct of strings and lists is always JSON.
            spec_json: serde_json::to_vec(spec).unwrap_or_default(),
        };
        let table = Table { epoch, endpoints: (0..self.endpoints).map(endpoint).collect() };
        let loads = LoadTable { epoch, records: (0..self.endpoints).map(load).collect() };
        let mut records = vec![
            (Key::Directory(odd), directory.encode()),
            (Key::Table(odd, 0), table.encode()),
            (Key::Load(odd, 0), loads.encode()),
            (Key::Model(odd, 0), model.encode()),
        ];
        records.extend(self.buckets(epoch, bucket_count));
        records
    }

    /// As the daemon sizes an index, with a floor for small states.
    fn bucket_count(&self) -> u32 {
        let strides = self.held.iter().map(|held| held.text.len() / STRIDE_BYTES);
        let buckets = strides.sum::<usize>().div_ceil(STRIDES_PER_BUCKET).next_power_of_two();
        u32::try_from(buckets).unwrap_or(u32::MAX).max(MIN_BUCKETS)
    }

    fn buckets(&self, epoch: u64, count: u32) -> Vec<(Key, Vec<u8>)> {
        let root = Namespace { model: "m", lora: None, salt: None }.root(&SEED);
        let mut writers: Vec<_> = (0..count).map(|_| BucketWriter::new(epoch)).collect();
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
                if let Some(writer) = writers.get_mut(bucket_of(*key, count) as usize) {
                    writer.push(entry);
                }
            }
        }
        let keys = (0..count).map(|bucket| Key::Bucket(0, bucket));
        keys.zip(writers.into_iter().map(BucketWriter::finish)).collect()
    }
}

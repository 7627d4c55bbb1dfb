//! Dynamo's concurrent compressed radix tree (crate `dynamo-kv-router`), one event lane.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use cpu_time::ThreadTime;
use dynamo_kv_router::ConcurrentRadixTreeCompressed;
use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData,
    KvCacheStoreData, KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
    compute_block_hash_for_seq,
};
use flume::Sender;
use tokio::sync::oneshot;

use crate::oracle::Depths;
use crate::subject::{CHUNK, Subject, Verdict};
use crate::trace::{BLOCK, Batch, Event};

pub(crate) struct Dynamo;

pub(crate) struct Tree {
    backend: Arc<ConcurrentRadixTreeCompressed>,
    /// The lane of its thread pool, where what the lane remembers must outlive a call.
    lane: Option<(Sender<WorkerTask>, JoinHandle<Result<()>>)>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.lane.take() {
            drop(sender);
            // A lane that failed has failed the flush before.
            let _ = thread.join();
        }
    }
}

impl Tree {
    fn lane(&mut self) -> &Sender<WorkerTask> {
        let (sender, _) = self.lane.get_or_insert_with(|| {
            let (sender, receiver) = flume::unbounded();
            let backend = Arc::clone(&self.backend);
            (sender, std::thread::spawn(move || backend.worker(receiver, None)))
        });
        sender
    }
}

/// When everything sent before is applied.
fn flush(sender: &Sender<WorkerTask>) -> Result<oneshot::Receiver<()>> {
    let (done, receiver) = oneshot::channel();
    sender.send(WorkerTask::Flush(done)).map_err(|_| anyhow!("the lane has ended"))?;
    Ok(receiver)
}

impl Subject for Dynamo {
    type Index = Tree;
    type Batch = Vec<RouterEvent>;
    type Prompt = Vec<u32>;
    type Query = Vec<LocalBlockHash>;
    type Answer = OverlapScores;

    fn empty(&self) -> Result<Tree> {
        Ok(Tree { backend: Arc::new(ConcurrentRadixTreeCompressed::new()), lane: None })
    }

    fn batch(&self, batch: &Batch) -> Result<Vec<RouterEvent>> {
        let event = |event: &Event| {
            let data = match event {
                Event::Stored { parent, hashes, token_ids } => {
                    let local = compute_block_hash_for_seq(
                        token_ids,
                        BLOCK as u32,
                        BlockHashOptions::default(),
                    );
                    let block = |(hash, local): (&u64, LocalBlockHash)| KvCacheStoredBlockData {
                        block_hash: ExternalSequenceBlockHash(*hash),
                        tokens_hash: local,
                        mm_extra_info: None,
                    };
                    KvCacheEventData::Stored(KvCacheStoreData {
                        parent_hash: parent.map(ExternalSequenceBlockHash),
                        start_position: None,
                        blocks: hashes.iter().zip(local).map(block).collect(),
                    })
                }
                Event::Removed { hashes } => KvCacheEventData::Removed(KvCacheRemoveData {
                    block_hashes: hashes.iter().map(|h| ExternalSequenceBlockHash(*h)).collect(),
                }),
            };
            let event = KvCacheEvent { event_id: 0, data, dp_rank: 0 };
            RouterEvent::new(u64::from(batch.slot), event)
        };
        Ok(batch.events.iter().map(event).collect())
    }

    fn apply(&self, tree: &mut Tree, batches: &mut Vec<Vec<RouterEvent>>) -> Result<()> {
        let lane = tree.lane();
        for event in batches.drain(..).flatten() {
            lane.send(WorkerTask::Event(event)).map_err(|_| anyhow!("the lane has ended"))?;
        }
        flush(lane)?.blocking_recv().context("the lane has ended")
    }

    /// The lane runs on this thread, and what it waits for is converted on another.
    fn timed(&self, tree: &mut Tree, batches: &[Batch]) -> Result<Duration> {
        let (sender, receiver) = flume::bounded(CHUNK);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for event in batches.iter().flat_map(|batch| self.batch(batch)).flatten() {
                    if sender.send(WorkerTask::Event(event)).is_err() {
                        // The lane says why it ended.
                        return;
                    }
                }
            });
            let start = ThreadTime::now();
            tree.backend.worker(receiver, None)?;
            Ok(start.elapsed())
        })
    }

    fn prompt(&self, tokens: &[u32]) -> Vec<u32> {
        tokens.to_vec()
    }

    fn hash(&self, prompt: &Vec<u32>) -> Vec<LocalBlockHash> {
        compute_block_hash_for_seq(prompt, BLOCK as u32, BlockHashOptions::default())
    }

    fn lookup(&self, tree: &Tree, query: &Vec<LocalBlockHash>) -> OverlapScores {
        tree.backend.find_matches(query, false)
    }

    fn judge(&self, _tokens: &[u32], answer: &OverlapScores, truth: &Depths) -> Verdict {
        let mut told: Vec<(u16, u32)> = answer
            .scores
            .iter()
            .map(|(worker, blocks)| (worker.worker_id as u16, *blocks))
            .collect();
        told.sort_unstable();
        Verdict::of(&told, truth)
    }
}

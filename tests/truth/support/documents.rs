//! Documents as the unit of what a batch brings, for the tests of lost and repeated batches.

use super::Scene;
use super::frames::{Chain, Event};
use super::text::Text;
use super::twin::{Place, Space};

/// Short documents that share nothing, one per batch: what a batch brought can be told.
pub(crate) struct Documents(pub(crate) Vec<Text>);

/// Tokens per block.
pub(crate) const BLOCK: usize = 16;
/// Blocks per document.
pub(crate) const BLOCKS: usize = 3;

impl Documents {
    pub(crate) fn new(count: usize) -> Self {
        let about = |i| Text::about(&format!("document {i}"), (BLOCKS * BLOCK) + 1);
        Self((0..count).map(about).collect())
    }

    pub(crate) fn event(&self, i: usize) -> Event {
        Chain::new(&self.0[i], BLOCK).stored(0..BLOCKS)
    }

    pub(crate) fn all(&self) -> Vec<&Text> {
        self.0.iter().collect()
    }
}

impl Scene {
    /// Publishes documents, one a batch.
    pub(crate) fn send(&mut self, documents: &Documents, which: impl IntoIterator<Item = usize>) {
        for i in which {
            self.engines[0].publish(&[documents.event(i)]);
        }
    }

    /// The same while nobody is told.
    pub(crate) fn withhold(
        &mut self,
        documents: &Documents,
        which: impl IntoIterator<Item = usize>,
    ) {
        for i in which {
            self.engines[0].keep(&[documents.event(i)]);
            self.engines[0].batches += 1;
        }
    }

    /// The truth: the engine holds these documents.
    pub(crate) fn holds(&mut self, documents: &Documents, which: impl IntoIterator<Item = usize>) {
        for i in which {
            let twin = &mut self.engines[0].twin;
            twin.hold(&documents.0[i], &Space::default(), 0..BLOCKS, Place::Gpu);
        }
    }

    /// Publishes batches without events until the daemon has applied one, as nothing tells when a
    /// subscription takes effect; then a document.
    pub(crate) async fn send_until_heard(&mut self, documents: &Documents, first: usize) {
        let before = self.endpoint(0, "event_batches").await;
        while self.endpoint(0, "event_batches").await == before {
            self.engines[0].publish(&[]);
        }
        self.send(documents, [first]);
        self.wait_listed(&documents.0[first]).await;
        // What came before it has arrived as well.
        self.engines[0].batches = self.endpoint(0, "event_batches").await.as_u64().unwrap();
    }

    /// Waits until the gateway lists the text for engine 0.
    pub(crate) async fn wait_listed(&mut self, text: &Text) {
        let address = self.engines[0].address();
        let gateway = &self.gateway;
        let limit = std::time::Duration::from_secs(60);
        testbed::wait_until("the text is listed", limit, async || {
            let depths = gateway.depths(text, &Space::default());
            (depths[&address].gpu.0 > 0).then_some(())
        })
        .await
        .unwrap();
    }

    pub(crate) async fn resets(&mut self) -> u64 {
        self.endpoint(0, "resets").await.as_u64().unwrap()
    }
}

//! A request's body on its way to the endpoint: kept from its beginning, within a limit, so that another
//! endpoint can be sent it too.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// Bytes that may wait for the endpoint of a body too long to be sent again.
const WAITING_BYTES: usize = 1 << 20;

/// The body as far as it has come.
#[derive(Clone)]
pub(super) struct Upload {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There may be room again.
    room: Notify,
    limit: usize,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Chunks that were given up at the front.
    dropped: usize,
    /// All bytes that came.
    bytes: usize,
    /// Bytes that the last reader has not read.
    unread: usize,
    is_over_limit: bool,
    is_ended: bool,
    waker: Option<Waker>,
    /// Number of the reader that is served.
    reader: u64,
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Upload {
    /// A body of which up to `limit` bytes are kept.
    pub(super) fn new(limit: usize) -> Self {
        let shared = Shared { state: Mutex::default(), room: Notify::new(), limit };
        Self { shared: Arc::new(shared) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, chunk: Bytes) {
        let mut state = self.state();
        state.bytes += chunk.len();
        state.unread += chunk.len();
        state.is_over_limit |= state.bytes > self.shared.limit;
        state.chunks.push_back(chunk);
        state.wake();
    }

    pub(super) fn end(&self) {
        let mut state = self.state();
        state.is_ended = true;
        state.wake();
    }

    /// All bytes that came.
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// Whether all that came can be read once more.
    pub(super) fn is_whole(&self) -> bool {
        self.state().dropped == 0
    }

    /// Resolves when more may come.
    pub(super) async fn room(&self) {
        loop {
            let notified = self.shared.room.notified();
            {
                let state = self.state();
                if !state.is_over_limit || state.unread < WAITING_BYTES {
                    return;
                }
            }
            notified.await;
        }
    }

    /// A reader from the beginning; one before gets nothing more.
    pub(super) fn reader(&self) -> Reader {
        let mut state = self.state();
        state.reader += 1;
        state.unread = state.chunks.iter().map(Bytes::len).sum();
        Reader { upload: self.clone(), number: state.reader, next: state.dropped }
    }
}

/// A reading of the body.
pub(super) struct Reader {
    upload: Upload,
    number: u64,
    next: usize,
}

/// The body went to another endpoint.
#[derive(Debug, thiserror::Error)]
#[error("the request is sent elsewhere")]
pub(super) struct Elsewhere;

impl Body for Reader {
    type Data = Bytes;
    type Error = Elsewhere;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Elsewhere>>> {
        let upload = self.upload.clone();
        let mut state = upload.state();
        if state.reader != self.number {
            return Poll::Ready(Some(Err(Elsewhere)));
        }
        let Some(chunk) = state.chunks.get(self.next - state.dropped).cloned() else {
            if state.is_ended {
                return Poll::Ready(None);
            }
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        self.next += 1;
        state.unread = state.unread.saturating_sub(chunk.len());
        if state.is_over_limit {
            while state.dropped < self.next {
                state.chunks.pop_front();
                state.dropped += 1;
            }
        }
        upload.shared.room.notify_one();
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.upload.state();
        state.is_ended && self.next - state.dropped >= state.chunks.len()
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.upload.state();
        let left: usize = state.chunks.iter().skip(self.next - state.dropped).map(Bytes::len).sum();
        if state.is_ended { SizeHint::with_exact(left as u64) } else { SizeHint::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    async fn next(reader: &mut Reader) -> String {
        match reader.frame().await {
            Some(Ok(frame)) => {
                String::from_utf8_lossy(&frame.into_data().unwrap_or_default()).into_owned()
            }
            Some(Err(error)) => error.to_string(),
            None => "end".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_second_reader_begins_anew_and_the_first_gets_nothing_more() {
        let upload = Upload::new(100);
        let mut first = upload.reader();
        upload.push("a".into());
        assert_eq!(next(&mut first).await, "a");
        let mut second = upload.reader();
        upload.push("b".into());
        upload.end();
        assert_eq!(next(&mut first).await, "the request is sent elsewhere");
        assert_eq!(
            [next(&mut second).await, next(&mut second).await, next(&mut second).await],
            ["a", "b", "end"]
        );
        assert!(upload.is_whole() && second.is_end_stream());
    }

    #[tokio::test]
    async fn above_the_limit_what_was_read_is_given_up_and_the_sender_waits() {
        let upload = Upload::new(3);
        let mut reader = upload.reader();
        upload.push("abc".into());
        assert_eq!(next(&mut reader).await, "abc");
        assert!(upload.is_whole());
        upload.push(vec![b'd'; WAITING_BYTES].into());
        let mut room = tokio_test_poll(upload.room());
        assert!(!room.is_ready(), "a whole window waits");
        assert_eq!(next(&mut reader).await.len(), WAITING_BYTES);
        assert!(!upload.is_whole(), "what was read is gone");
        room = tokio_test_poll(upload.room());
        assert!(room.is_ready());
    }

    struct Polled(bool);
    impl Polled {
        fn is_ready(&self) -> bool {
            self.0
        }
    }

    /// Polls once.
    fn tokio_test_poll(future: impl Future<Output = ()>) -> Polled {
        let mut future = std::pin::pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        Polled(future.as_mut().poll(&mut context).is_ready())
    }
}

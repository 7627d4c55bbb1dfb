//! Which endpoint a client's session is bound to, shared by all workers of a gateway.

use crate::WireError;
use crate::matrix::EndpointHash;
use crate::wire::{Reader, Writer};

/// Buckets of sessions; a session's bucket is its hash modulo this.
pub const SESSION_BUCKETS: u16 = 1024;
/// Sessions of a bucket: 2.4 KB, as a bucket is written with each request of a session.
pub const MAX_SESSIONS: usize = 100;

/// A session by the hash of its model and its id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionHash(pub u64);

impl SessionHash {
    /// FNV-1a 64 of model and id with a byte between them that is in no text.
    pub fn of(model: &str, id: &[u8]) -> Self {
        let bytes = model.bytes().chain([0xff]).chain(id.iter().copied());
        Self(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        }))
    }

    /// The bucket it is in.
    pub fn bucket(self) -> u16 {
        (self.0 % u64::from(SESSION_BUCKETS)) as u16
    }
}

/// One session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Session {
    /// Which.
    pub session: SessionHash,
    /// The endpoint that its last request went to.
    pub endpoint: EndpointHash,
    /// Gateway's monotonic clock at that request.
    pub used_ns: u64,
}

/// Sessions of a bucket.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sessions {
    /// In no order, each once.
    pub sessions: Vec<Session>,
}

impl Sessions {
    /// The endpoint that `session` is bound to, unless it was not used for `ttl_ns`.
    pub fn find(&self, session: SessionHash, now_ns: u64, ttl_ns: u64) -> Option<EndpointHash> {
        let found = self.sessions.iter().find(|held| held.session == session)?;
        is_alive(found, now_ns, ttl_ns).then_some(found.endpoint)
    }

    /// Binds `session` to `endpoint`. What has not been used for `ttl_ns` is forgotten, and where
    /// there is no room the one that was used longest ago.
    pub fn bind(&mut self, session: SessionHash, endpoint: EndpointHash, now_ns: u64, ttl_ns: u64) {
        self.sessions.retain(|held| held.session != session && is_alive(held, now_ns, ttl_ns));
        while self.sessions.len() >= MAX_SESSIONS {
            let oldest = self.sessions.iter().enumerate().min_by_key(|(_, held)| held.used_ns);
            let Some((at, _)) = oldest else { break };
            self.sessions.swap_remove(at);
        }
        self.sessions.push(Session { session, endpoint, used_ns: now_ns });
    }

    /// The shared value. At most [`MAX_SESSIONS`] are written.
    pub fn encode(&self) -> Vec<u8> {
        let count = self.sessions.len().min(MAX_SESSIONS);
        let mut writer = Writer::with_preamble(b'E', 4 + 24 * count);
        writer.u16(count as u16);
        for held in self.sessions.iter().take(count) {
            writer.u64(held.session.0).u64(held.endpoint.0).u64(held.used_ns);
        }
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'E')?;
        let count = usize::from(reader.u16()?);
        if count > MAX_SESSIONS {
            return Err(WireError::Range("session count"));
        }
        let mut sessions = Vec::with_capacity(count.min(reader.remaining() / 24));
        for _ in 0..count {
            sessions.push(Session {
                session: SessionHash(reader.u64()?),
                endpoint: EndpointHash(reader.u64()?),
                used_ns: reader.u64()?,
            });
        }
        reader.finish()?;
        Ok(Self { sessions })
    }
}

fn is_alive(held: &Session, now_ns: u64, ttl_ns: u64) -> bool {
    now_ns.saturating_sub(held.used_ns) < ttl_ns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_full_bucket_forgets_the_session_that_was_used_longest_ago() {
        let mut sessions = Sessions::default();
        let bind = |sessions: &mut Sessions, id: u64, now_ns| {
            sessions.bind(SessionHash(id), EndpointHash(id), now_ns, 1_000);
        };
        for id in 0..MAX_SESSIONS as u64 {
            bind(&mut sessions, id, 10 + id);
        }
        // Used again, so the next one is the oldest.
        bind(&mut sessions, 0, 500);
        bind(&mut sessions, 7_000, 501);
        let find = |id| sessions.find(SessionHash(id), 502, 1_000).is_some();
        assert_eq!([0, 1, 2, 7_000].map(find), [true, false, true, true]);
        assert_eq!(sessions.sessions.len(), MAX_SESSIONS);
        assert_eq!(Sessions::decode(&sessions.encode()), Ok(sessions));
    }

    proptest! {
        /// Against a map of everything that was ever bound.
        #[test]
        fn a_session_is_found_for_as_long_as_it_is_used(
            uses in proptest::collection::vec((0u64..20, 0u64..4, 0u64..40), 0..80),
        ) {
            let (mut sessions, mut twin) = (Sessions::default(), BTreeMap::new());
            let mut now_ns = 0;
            for (id, endpoint, later) in uses {
                now_ns += later;
                let expected = twin.get(&id).filter(|(_, used)| now_ns - used < 100);
                let expected = expected.map(|(endpoint, _)| EndpointHash(*endpoint));
                prop_assert_eq!(sessions.find(SessionHash(id), now_ns, 100), expected);
                sessions.bind(SessionHash(id), EndpointHash(endpoint), now_ns, 100);
                twin.insert(id, (endpoint, now_ns));
                prop_assert_eq!(&Sessions::decode(&sessions.encode()).unwrap(), &sessions);
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = vec![b'E', 1];
            framed.extend(bytes);
            let _ = Sessions::decode(&framed);
        }
    }
}

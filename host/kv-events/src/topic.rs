//! The topic by which llm-d tells publishers apart.

use std::fmt;

/// Longest topic that is looked at, in bytes.
const MAX_TOPIC_BYTES: usize = 1024;

/// `kv@POD@MODEL`: who publishes what.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic {
    /// Name or address of the pod, with a port if it has several engines (`10.0.0.7:8000`).
    pub pod: String,
    /// Model the pod serves. May contain any character.
    pub model: String,
}

impl Topic {
    /// Reads the first frame of a message.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(frame.get(..frame.len().min(MAX_TOPIC_BYTES + 1))?).ok()?;
        let (pod, model) = text.strip_prefix("kv@")?.split_once('@')?;
        let usable = text.len() <= MAX_TOPIC_BYTES && !pod.is_empty() && !model.is_empty();
        usable.then(|| Self { pod: pod.to_owned(), model: model.to_owned() })
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kv@{}@{}", self.pod, self.model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(frame: &str, expected: Option<(&str, &str)>) {
        let topic = Topic::parse(frame.as_bytes());
        let parts = topic.as_ref().map(|topic| (topic.pod.as_str(), topic.model.as_str()));
        assert_eq!(parts, expected, "{frame}");
        if let Some(topic) = topic {
            assert_eq!(topic.to_string(), frame);
        }
    }

    #[test]
    fn a_topic_names_pod_and_model() {
        check("kv@vllm-0@meta/llama", Some(("vllm-0", "meta/llama")));
        check("kv@10.0.0.7:8000@m", Some(("10.0.0.7:8000", "m")));
        check("kv@[fd00::1]:8000@m@v2", Some(("[fd00::1]:8000", "m@v2")));
    }

    #[test]
    fn other_topics_are_none() {
        for frame in ["", "kv", "kv@", "kv@pod", "kv@@m", "kv@pod@", "load@pod@m", "KV@pod@m"] {
            check(frame, None);
        }
        assert_eq!(Topic::parse(b"kv@\xff@m"), None);
        let longest = "p".repeat(MAX_TOPIC_BYTES - 5);
        check(&format!("kv@{longest}@m"), Some((&longest, "m")));
        check(&format!("kv@p{longest}@m"), None);
    }
}

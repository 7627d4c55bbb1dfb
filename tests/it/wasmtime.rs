//! The modules on wasmtime in front of the same engines and fed by the same daemon: they decide as in
//! Envoy, and what they carry arrives.

use std::net::SocketAddr;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    Answer, EngineOptions, PodScores, Process, Runtime, Stand, StandOptions, pod_scores, port,
    wait_until, wasm_epp,
};

use crate::support::{
    BOTH, CHAT, COMPLETIONS, Protocol, cases, line, prose, question, received, served,
};
use crate::walkthrough::{
    a_chat_of_three_turns_stays_and_a_second_conversation_goes_elsewhere,
    a_megabyte_is_matched_the_second_time,
    a_prompt_that_ends_inside_a_stride_is_at_most_two_blocks_short,
    a_repeated_prompt_is_served_by_its_holder_who_finds_as_many_blocks_as_we_said,
};
use crate::wire::{self, Parts};

#[tokio::test(flavor = "multi_thread")]
async fn prompts_go_to_the_engine_that_holds_them_on_wasmtime() {
    let flags = ["--num-blocks", "60000", "--max-model-len", "450000"].map(str::to_owned).to_vec();
    let engines = vec![EngineOptions { flags }; 3];
    let options =
        StandOptions { runtime: Runtime::Wasmtime, engines, workers: 2, ..StandOptions::default() };
    let stand = Stand::start(options).await.unwrap();
    cases!(stand;
        a_repeated_prompt_is_served_by_its_holder_who_finds_as_many_blocks_as_we_said,
        a_prompt_that_ends_inside_a_stride_is_at_most_two_blocks_short,
        a_chat_of_three_turns_stays_and_a_second_conversation_goes_elsewhere,
        a_megabyte_is_matched_the_second_time,
        bodies_in_pieces_and_with_trailers_arrive_whole,
        a_stream_of_events_arrives_whole,
        what_is_no_prompt_passes,
    );
}

async fn bodies_in_pieces_and_with_trailers_arrive_whole(stand: Rc<Stand>) {
    let body = question(&prose("pieces", 300_000));
    let pieces: Vec<&[u8]> = body.chunks(7_001).collect();
    let framed: Vec<Vec<u8>> = pieces.iter().map(|piece| wire::chunk(piece)).collect();
    for end in ["0\r\n\r\n", "0\r\nx-after: 1\r\n\r\n"] {
        let parts: Vec<&[u8]> = framed.iter().map(Vec::as_slice).chain([end.as_bytes()]).collect();
        let headers: [(&str, &[u8]); 1] = [("transfer-encoding", b"chunked")];
        let answer = wire::h1(stand.gateway, "POST", COMPLETIONS, &headers, &parts).await.unwrap();
        received(&stand, &answer, &body);
        assert!(line(&stand, &answer).await.picked().len() == 3);
    }
    let trailers: [&[(&str, &[u8])]; 2] = [&[], &[("x-after", b"1")]];
    for trailers in trailers {
        let parts = Parts { data: &pieces, trailers };
        let answer = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
        received(&stand, &answer, &body);
        assert!(line(&stand, &answer).await.picked().len() == 3);
    }
}

async fn a_stream_of_events_arrives_whole(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = json!({
            "model": "tiny", "stream": true, "max_tokens": 40,
            "messages": [{"role": "user", "content": prose("a stream", 300)}],
        });
        let body = body.to_string().into_bytes();
        let answer = protocol.post(&stand, CHAT, &body).await;
        served(&stand, &answer, &body);
        assert_eq!(answer.header("content-type").split(';').next(), Some("text/event-stream"));
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let events: Vec<&str> = text.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.last(), Some(&"data: [DONE]"), "{text}");
        let of_tokens = events.iter().filter_map(|event| event.strip_prefix("data: {"));
        assert!(of_tokens.count() >= 40, "{text}");
    }
}

async fn what_is_no_prompt_passes(stand: Rc<Stand>) {
    let answer = stand.client().get("/v1/models").await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json().unwrap()["data"][0]["id"], "tiny");
}

/// A second gateway, on wasmtime, fed by the daemon that also feeds the stand's Envoy.
struct Second {
    address: SocketAddr,
    log: std::path::PathBuf,
    _process: Process,
}

const GATEWAYS: &str = "gateways:\n- {name: first, feed: 'unix:feed.sock'}\n\
                        - {name: second, feed: 'unix:second.sock'}\n";

impl Second {
    async fn start(stand: &Stand) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], port().unwrap()));
        let text = std::fs::read_to_string(stand.config_file()).unwrap();
        assert!(text.contains("  feed: unix:feed.sock\n"), "{text}");
        let text = text.replace("  feed: unix:feed.sock\n", "  feed: unix:second.sock\n");
        let config = stand.folder.path().join("second.yaml");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(wasm_epp().unwrap());
        command.arg("run").arg(config).args(["--gateway", &address.to_string()]);
        let log = stand.folder.path().join("second.log");
        let process = Process::start("wasm-epp run", &mut command, &log).unwrap();
        wait_until("the second gateway listens", Duration::from_secs(60), async || {
            let text = std::fs::read_to_string(&log).ok()?;
            text.contains("\nlistening for probes").then_some(())
        })
        .await
        .unwrap();
        Self { address, log, _process: process }
    }

    async fn post(&self, protocol: Protocol, path: &str, body: &[u8]) -> Answer {
        let length = body.len().to_string();
        let headers: [(&str, &[u8]); 2] =
            [("content-type", b"application/json"), ("content-length", length.as_bytes())];
        match protocol {
            Protocol::H1 => wire::h1(self.address, "POST", path, &headers, &[body]).await,
            Protocol::H2 => {
                let parts = Parts { data: &[body], trailers: &[] };
                wire::h2(self.address, path, &headers, parts).await
            }
        }
        .unwrap()
    }

    async fn line(&self, answer: &Answer) -> PodScores {
        pod_scores(&self.log, answer.header("x-request-id")).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_and_wasmtime_decide_alike_by_one_daemon() {
    let options = StandOptions { more_config: GATEWAYS.to_owned(), ..StandOptions::default() };
    let mut stand = Stand::prepare(options).await.unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    let second = Second::start(&stand).await;
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();

    for (number, protocol) in
        [Protocol::H1, Protocol::H2, Protocol::H1, Protocol::H2].into_iter().enumerate()
    {
        let prompt = prose(&format!("both gateways {number}"), 3_000);
        let asked = question(&prompt);
        // Cold: the engine refuses such a question, so nobody holds it afterwards.
        let in_envoy = protocol.post(&stand, COMPLETIONS, &asked).await;
        let in_second = second.post(protocol, COMPLETIONS, &asked).await;
        received(&stand, &in_envoy, &asked);
        received(&stand, &in_second, &asked);
        assert_eq!(line(&stand, &in_envoy).await.scores(), None);
        assert_eq!(second.line(&in_second).await.scores(), None);

        // One of them has it computed, in turn.
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 17}).to_string();
        let before = stand.event_batches().await.unwrap();
        let answer = match number % 2 {
            0 => protocol.post(&stand, COMPLETIONS, body.as_bytes()).await,
            _ => second.post(protocol, COMPLETIONS, body.as_bytes()).await,
        };
        let holder = served(&stand, &answer, body.as_bytes());
        stand.settled(&holder, &before).await.unwrap();

        // Warm: both send it to the holder, for the same reasons.
        let in_envoy = protocol.post(&stand, COMPLETIONS, &asked).await;
        let in_second = second.post(protocol, COMPLETIONS, &asked).await;
        assert_eq!(received(&stand, &in_envoy, &asked), holder);
        assert_eq!(received(&stand, &in_second, &asked), holder);
        let (ours, theirs) = (second.line(&in_second).await, line(&stand, &in_envoy).await);
        assert_eq!(ours.scores(), theirs.scores());
        assert!(ours.scores().expect("scores")[&holder] > 30, "{ours:?}");
        assert_eq!(ours.picked().first(), Some(&holder));
        let prefix = |line: &PodScores| -> Value { line.record["scorers"]["prefix-cache"].clone() };
        assert!(prefix(&ours).is_object(), "{ours:?}");
        assert_eq!(prefix(&ours), prefix(&theirs));
    }
}

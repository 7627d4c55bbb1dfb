//! Names followed with a server of the test's own, whose messages are written here byte by byte (RFC 1035, 2782).
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use discovery::dns::{DnsConfig, Record, follow};
use discovery::{Publisher, View};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// What the server says to a question of a name and kind.
#[derive(Clone, Debug)]
enum Says {
    /// Records: kind, time, data, each of the owner's name.
    Records(Vec<(&'static str, u16, u32, Vec<u8>)>),
    /// A response code without records.
    Code(u8),
    /// Cut off over UDP, these over TCP.
    OverTcp(Vec<(&'static str, u16, u32, Vec<u8>)>),
    /// First somebody else's answer, then this.
    AfterForgery(Vec<(&'static str, u16, u32, Vec<u8>)>),
}

#[derive(Clone, Default)]
struct Zone {
    says: Arc<Mutex<HashMap<(String, u16), Says>>>,
    asked: Arc<Mutex<BTreeMap<(String, u16), u32>>>,
}

fn name(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in text.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

fn srv(port: u16, target: &str) -> Vec<u8> {
    [&[0, 1, 0, 5][..], &port.to_be_bytes(), &name(target)].concat()
}

impl Zone {
    fn set(&self, owner: &str, kind: u16, says: Says) {
        self.says.lock().unwrap().insert((owner.to_owned(), kind), says);
    }

    fn asked(&self, owner: &str, kind: u16) -> u32 {
        self.asked.lock().unwrap().get(&(owner.to_owned(), kind)).copied().unwrap_or(0)
    }

    /// Answers to a question, in order.
    fn answers(&self, question: &[u8], is_tcp: bool) -> Vec<Vec<u8>> {
        let mut labels = Vec::new();
        let mut at = 12;
        while question[at] != 0 {
            let end = at + 1 + usize::from(question[at]);
            labels.push(String::from_utf8(question[at + 1..end].to_vec()).unwrap());
            at = end;
        }
        let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
        assert_eq!(question[at + 3..], [0, 1], "class Internet, and nothing after it");
        assert_eq!(question[2..12], [1, 0, 0, 1, 0, 0, 0, 0, 0, 0], "one question, recursive");
        let key = (labels.join("."), kind);
        if !is_tcp {
            *self.asked.lock().unwrap().entry(key.clone()).or_default() += 1;
        }
        let says = self.says.lock().unwrap().get(&key).cloned().unwrap_or(Says::Records(vec![]));
        let message = |flags: [u8; 2], id: [u8; 2], records: &[(&str, u16, u32, Vec<u8>)]| {
            let mut out = [&id[..], &flags, &[0, 1, 0, records.len() as u8, 0, 0, 0, 0]].concat();
            out.extend(&question[12..]);
            for (owner, kind, ttl, data) in records {
                // The question's own name as a pointer to it.
                if *owner == key.0 {
                    out.extend([0xC0, 12]);
                } else {
                    out.extend(name(owner));
                }
                out.extend(kind.to_be_bytes());
                out.extend([0, 1]);
                out.extend(ttl.to_be_bytes());
                out.extend((data.len() as u16).to_be_bytes());
                out.extend(data);
            }
            out
        };
        let id = [question[0], question[1]];
        match says {
            Says::Records(records) => vec![message([0x81, 0x80], id, &records)],
            Says::Code(code) => vec![message([0x81, 0x80 | code], id, &[])],
            Says::OverTcp(records) if is_tcp => vec![message([0x81, 0x80], id, &records)],
            Says::OverTcp(_) => vec![message([0x83, 0x80], id, &[])],
            Says::AfterForgery(records) => {
                let forged = [("engines.local", A, 60, vec![6, 6, 6, 6])];
                vec![
                    message([0x81, 0x80], [id[0] ^ 1, id[1]], &forged),
                    message([0x81, 0x80], id, &records),
                ]
            }
        }
    }

    async fn serve(&self) -> SocketAddr {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = udp.local_addr().unwrap();
        let tcp = TcpListener::bind(address).await.unwrap();
        let (over_udp, over_tcp) = (self.clone(), self.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                for answer in over_udp.answers(&buffer[..length], false) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let mut question = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut question).await.unwrap();
                let answer = over_tcp.answers(&question, true).remove(0);
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        address
    }
}

async fn start(zone: &Zone, record: Record, of: &str) -> watch::Receiver<View> {
    let (publisher, views) = Publisher::new();
    let config = DnsConfig {
        name: of.into(),
        record,
        server: Some(zone.serve().await),
        max_interval: Duration::from_secs(2),
    };
    tokio::spawn(follow(config, publisher));
    views
}

async fn until(views: &mut watch::Receiver<View>, expected: &[&str]) {
    let is = |view: &View| {
        let found: Vec<String> = view.endpoints.keys().map(ToString::to_string).collect();
        view.is_known && found == expected
    };
    let limit = Duration::from_secs(60);
    let is_so = tokio::time::timeout(limit, views.wait_for(is)).await.is_ok();
    assert!(is_so, "{expected:?}: {:#?}", views.borrow());
}

#[tokio::test]
async fn addresses_of_a_name_are_asked_again_when_their_time_is_over() {
    let zone = Zone::default();
    let a = |ttl, ip: [u8; 4]| ("engines.local", A, ttl, ip.to_vec());
    zone.set("engines.local", A, Says::Records(vec![a(1, [10, 0, 0, 2]), a(60, [10, 0, 0, 1])]));
    let six = [0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1].to_vec();
    zone.set("engines.local", AAAA, Says::Records(vec![("engines.local", AAAA, 60, six)]));
    let mut views = start(&zone, Record::Address { port: 8000 }, "engines.local.").await;
    until(&mut views, &["10.0.0.1:8000", "10.0.0.2:8000", "[fd00::1]:8000"]).await;
    assert!(views.borrow().endpoints.values().all(|found| found.is_ready));

    // A server that fails takes nothing away; a name that is not there is no endpoints.
    zone.set("engines.local", A, Says::Code(2));
    let failed = views.wait_for(|view| view.error.is_some()).await.unwrap().clone();
    assert_eq!(failed.endpoints.len(), 3);
    assert!(failed.error.unwrap().contains("the server fails with code 2"));
    zone.set("engines.local", A, Says::Code(3));
    zone.set("engines.local", AAAA, Says::Code(3));
    until(&mut views, &[]).await;
    zone.set("engines.local", A, Says::AfterForgery(vec![a(1, [10, 0, 0, 9])]));
    until(&mut views, &["10.0.0.9:8000"]).await;
    assert_eq!(views.borrow().error, None);
    let many: Vec<_> = (1..=200).map(|i| a(60, [10, 1, 0, i])).collect();
    zone.set("engines.local", A, Says::OverTcp(many));
    views.wait_for(|view| view.endpoints.len() == 200).await.unwrap();
    assert!(zone.asked("engines.local", A) >= 5);
}

#[tokio::test]
async fn srv_records_name_targets_and_ports() {
    let zone = Zone::default();
    let service = "_openai._tcp.engines.local";
    zone.set(
        service,
        SRV,
        Says::Records(vec![
            (service, SRV, 60, srv(8000, "e1.engines.local")),
            (service, SRV, 60, srv(8001, "e1.engines.local")),
            (service, SRV, 60, srv(9000, "alias.engines.local")),
        ]),
    );
    zone.set(
        "e1.engines.local",
        A,
        Says::Records(vec![("E1.Engines.local", A, 60, vec![10, 0, 0, 1])]),
    );
    // An alias, whose target's address comes with it; what is of another name is not taken.
    zone.set(
        "alias.engines.local",
        A,
        Says::Records(vec![
            ("alias.engines.local", CNAME, 60, name("e2.engines.local")),
            ("e3.engines.local", A, 60, vec![10, 0, 0, 3]),
            ("e2.engines.local", A, 60, vec![10, 0, 0, 2]),
        ]),
    );
    let mut views = start(&zone, Record::Srv, service).await;
    until(&mut views, &["10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:9000"]).await;
    let names: Vec<_> = views.borrow().endpoints.values().map(|found| found.name.clone()).collect();
    assert_eq!(names, ["e1.engines.local", "e1.engines.local", "alias.engines.local"]);
    zone.set(service, SRV, Says::Records(vec![(service, SRV, 60, srv(8000, "e1.engines.local"))]));
    until(&mut views, &["10.0.0.1:8000"]).await;
}

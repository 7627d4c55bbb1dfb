//! A gateway's acks and its files, without a gateway.

use std::path::Path;

use feed::WorkerRow;

use super::*;
use crate::config;

const S: u64 = 1_000_000_000;

struct Setup {
    folder: tempfile::TempDir,
    revival: Revival,
    start: Instant,
}

impl Setup {
    fn new(resources: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let modules = folder.path().join("modules");
        std::fs::create_dir_all(&modules).unwrap();
        for name in ["router", "feeder"] {
            std::fs::write(modules.join(format!("{name}.wasm")), b"\0asm....").unwrap();
        }
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-model");
        let text = format!(
            "gateways: [{{name: gw, feed: 'unix:feed.sock'{resources}}}]\npools:\n- name: pool\n  \
             models: [{{name: tiny, folder: '{}'}}]\n  endpoints: [{{address: '127.0.0.1:8000'}}]\n\
             envoy: {{modules: modules, feed: 'unix:feed.sock'}}\n",
            model.display()
        );
        let file = folder.path().join("wasm-epp.yaml");
        std::fs::write(&file, text).unwrap();
        let config = config::load(&file).unwrap();
        render::envoy(&config, &folder.path().join("out")).unwrap();
        let status = Arc::default();
        let revival = Revival::new(&config.gateways[0], &config.routing, &status);
        Self { folder, revival, start: Instant::now() }
    }

    /// An ack at `s` seconds with one VM whose beat was at 100 s.
    fn ack(&mut self, s: u64, vm: u64) -> Vms {
        let at = self.start + Duration::from_secs(s - 100);
        {
            let mut status = self.revival.status.lock().unwrap();
            status.state = PushState::Live;
            status.gateway_now_ns = s * S;
            status.last_ack = Some(at);
            status.rows = vec![WorkerRow { vm, beat_ns: 100 * S, ..WorkerRow::default() }];
        }
        self.revival.look(at);
        self.revival.vms.lock().unwrap()["router"].clone()
    }

    fn files(&self) -> Vec<String> {
        let read = |name| std::fs::read_to_string(self.folder.path().join("out/ecds").join(name));
        ["intake.yaml", "picker.yaml"].map(|name| read(name).unwrap()).to_vec()
    }
}

#[test]
fn a_dead_vm_is_revived_until_it_is_given_up_and_afresh_when_its_files_change() {
    let mut setup = Setup::new(", resources: out");
    let mut files = setup.files();
    assert_eq!(setup.ack(102, 1).revivals, 0);
    assert_eq!(setup.files(), files);
    // Every VM that is loaded is dead by the next look.
    let mut revived = Vec::new();
    for s in 106..300 {
        let vms = setup.ack(s, s);
        let now = setup.files();
        let is_written = now.iter().zip(&files).all(|(now, before)| now != before);
        assert!(is_written || now == files, "both or none");
        if is_written {
            revived.push(s);
        }
        files = now;
        assert_eq!(vms.revivals as usize, revived.len());
        assert_eq!((vms.dead, vms.error), (usize::from(!is_written), None));
    }
    assert_eq!(revived, [106, 108, 112, 120, 136]);
    let vms = setup.ack(300, 300);
    assert!(vms.is_given_up, "{vms:?}");
    let told = vms.details("router");
    assert_eq!((&told["dead"], &told["revivals"]), (&json!(1), &json!(5)));

    // Somebody renders something else.
    let picker = setup.folder.path().join("out/ecds/picker.yaml");
    let text = std::fs::read_to_string(&picker).unwrap();
    let version = text.split_once("version_info: ").unwrap().1.split('\n').next().unwrap();
    std::fs::write(&picker, text.replace(version, "another")).unwrap();
    let vms = setup.ack(301, 301);
    assert_eq!((vms.revivals, vms.is_given_up), (6, false));
    // All is well again.
    let vms = setup.ack(102, 302);
    assert_eq!((vms.dead, vms.revivals, vms.not_before), (0, 6, None));
}

#[test]
fn without_its_files_a_gateways_dead_vm_is_only_told() {
    let mut setup = Setup::new("");
    let files = setup.files();
    let vms = setup.ack(106, 1);
    assert_eq!((vms.dead, vms.revivals), (1, 0));
    assert_eq!(setup.files(), files);
    let mut setup = Setup::new(", resources: elsewhere");
    let vms = setup.ack(106, 1);
    assert_eq!((vms.dead, vms.revivals), (1, 0));
    let error = vms.error.unwrap();
    assert!(error.contains("elsewhere/ecds/intake.yaml: No such file"), "{error}");
    assert!(error.contains("is this the folder that render --out wrote?"), "{error}");
    assert!(!setup.folder.path().join("elsewhere").exists());
}

#[test]
fn another_daemons_gateway_is_left_alone_and_an_ack_is_judged_once() {
    let mut setup = Setup::new(", resources: out");
    let files = setup.files();
    let at = setup.start + Duration::from_secs(10);
    {
        let mut status = setup.revival.status.lock().unwrap();
        status.state = PushState::Standby;
        status.gateway_now_ns = 110 * S;
        status.last_ack = Some(at);
        status.rows = vec![WorkerRow { vm: 1, beat_ns: 100 * S, ..WorkerRow::default() }];
    }
    setup.revival.look(at);
    assert_eq!(setup.files(), files);
    setup.revival.status.lock().unwrap().state = PushState::Live;
    setup.revival.look(at);
    let revived = setup.files();
    assert_ne!(revived, files);
    setup.revival.status.lock().unwrap().rows[0].vm = 2;
    setup.revival.look(at + Duration::from_secs(60));
    assert_eq!(setup.files(), revived, "the same ack");
}

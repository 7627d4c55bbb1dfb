use super::*;
use crate::config;
use crate::render;

/// A gateway with one scorer, rendered from modules that only look like some.
fn rendered(folder: &Path) -> PathBuf {
    let modules = folder.join("modules");
    fs::create_dir_all(&modules).unwrap();
    for name in ["router", "feeder", "mine"] {
        fs::write(modules.join(format!("{name}.wasm")), b"\0asm....").unwrap();
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-model");
    let text = format!(
        "pools:\n- name: pool\n  models: [{{name: tiny, folder: '{}'}}]\n  endpoints: [{{address: \
         '127.0.0.1:8000'}}]\nenvoy: {{modules: modules}}\nrouting:\n  scorers:\n  - {{type: queue, \
         weight: 2.5}}\n  - {{type: module, name: mine, module: modules/mine.wasm, parameters: {{at: \
         [1, 2.5, \"no\"], text: \"127\"}}}}\n",
        model.display()
    );
    let file = folder.join("wasm-epp.yaml");
    fs::write(&file, text).unwrap();
    let out = folder.join("out");
    render::envoy(&config::load(&file).unwrap(), &out).unwrap();
    out
}

fn read(out: &Path, name: &str) -> Value {
    let text = fs::read_to_string(out.join(format!("ecds/{name}.yaml"))).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

/// The filter's own configuration, taken out of the response; both without what may change.
fn split(mut response: Value) -> (Value, Value, (String, Option<u64>)) {
    let version = response["version_info"].as_str().unwrap().to_owned();
    response["version_info"] = Value::Null;
    let value = &mut response["resources"][0]["typed_config"]["config"]["configuration"]["value"];
    let mut own: Value = serde_json::from_str(value.as_str().unwrap()).unwrap();
    *value = Value::Null;
    let revision = own.as_object_mut().unwrap().remove("revision");
    (response, own, (version, revision.and_then(|revision| revision.as_u64())))
}

#[test]
fn nothing_changes_but_revision_and_version_of_every_filter_of_the_vm() {
    let folder = tempfile::tempdir().unwrap();
    let out = rendered(folder.path());
    for (vm, files, others) in [
        ("router", &["intake", "picker"][..], &["feeder", "scorer-0", "scorer-1"][..]),
        ("scorer-mine", &["scorer-0"], &["feeder", "intake", "picker", "scorer-1"]),
    ] {
        let untouched: Vec<Value> = others.iter().map(|name| read(&out, name)).collect();
        let mut versions_seen = vec![versions(&out, vm).unwrap()];
        for _ in 0..3 {
            let before: Vec<_> = files.iter().map(|name| split(read(&out, name))).collect();
            let written = revive(&out, vm).unwrap();
            assert_eq!(written.len(), files.len(), "{vm}: {written:?}");
            for (name, before) in files.iter().zip(before) {
                let after = split(read(&out, name));
                assert_eq!((&after.0, &after.1), (&before.0, &before.1), "{name}");
                assert_ne!((after.2).0, (before.2).0, "{name}");
                assert_eq!((after.2).1, Some((before.2).1.unwrap_or(0) + 1), "{name}");
            }
            let now = versions(&out, vm).unwrap();
            assert!(!versions_seen.contains(&now), "{vm}: {versions_seen:?} {now:?}");
            versions_seen.push(now);
        }
        let after: Vec<Value> = others.iter().map(|name| read(&out, name)).collect();
        assert_eq!(after, untouched, "{vm}");
    }
    assert_eq!(places(&out).unwrap(), ["mine"]);
    assert!(
        fs::read_dir(&out)
            .unwrap()
            .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".tmp") })
    );
}

#[test]
fn what_cannot_be_revived_is_refused_in_words_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = rendered(folder.path());
    let refused = |vm: &str, expected: &str| {
        let error = revive(&out, vm).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused("scorer-other", "holds scorer-other; accepted are router and scorer-NAME");
    refused("scorer-", "accepted are router");
    refused("feeder", "accepted are router");

    let picker = out.join("ecds/picker.yaml");
    let good = fs::read_to_string(&picker).unwrap();
    let intake = read(&out, "intake");
    for (bad, expected) in [
        ("a: [", "not YAML"),
        ("resources: []\n", "a filter that is no module"),
        (&good.replace("destinations\\\"", "destinations"), "a configuration that is not JSON"),
    ] {
        fs::write(&picker, bad).unwrap();
        refused("router", expected);
        assert_eq!(fs::read_to_string(&picker).unwrap(), bad);
    }
    fs::remove_file(&picker).unwrap();
    refused("router", "is this the folder that render --out wrote?");
    fs::write(&picker, &good).unwrap();
    for file in fs::read_dir(out.join("modules")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    refused("router", "the module ");
    assert_eq!(read(&out, "intake"), intake, "not half of a VM");
    assert!(revive(&folder.path().join("nowhere"), "router").is_err());
    assert!(!folder.path().join("nowhere").exists());
}

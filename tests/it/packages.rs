//! What `wasm-epp package` writes, read as others read it: `sha256sum`, `tar`, the rules of gateways' fetchers, the
//! library they are written with, and Cargo's own list of crates.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use testbed::{root, wasm_epp};

use crate::support::{go_program, sha256};

/// A static binary of amd64 that exits: the head of a 64-bit ELF file and one segment to load.
fn tiny_binary() -> Vec<u8> {
    let code = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]; // xor edi, edi; mov eax, 60; syscall
    let size = 64 + 56 + code.len() as u64;
    let base = 0x40_0000u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes()); // ET_EXEC, EM_X86_64
    }
    file.extend(1u32.to_le_bytes());
    for word in [base + 64 + 56, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 5] {
        file.extend(word.to_le_bytes()); // PT_LOAD, readable and executable
    }
    for word in [0, base, base, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

fn package(modules: &Path, daemon: &Path, out: &Path) -> Output {
    Command::new(wasm_epp().unwrap())
        .arg("package")
        .arg("--modules")
        .arg(modules)
        .arg("--module")
        .arg(root().join("target/wasm/queue-scorer.wasm"))
        .arg("--daemon")
        .arg(daemon)
        .arg("--source")
        .arg(root())
        .arg("--out")
        .arg(out)
        .arg("--json")
        .output()
        .unwrap()
}

/// All files below a folder by their relative paths.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), content);
            }
        }
    }
    found
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// An image's manifest, from its layout.
fn manifest(layout: &Path) -> Value {
    let read = |path: PathBuf| json(&std::fs::read(path).unwrap());
    assert_eq!(read(layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = read(layout.join("index.json"));
    let [entry] = index["manifests"].as_array().unwrap().as_slice() else { panic!("{index}") };
    read(blob(layout, entry))
}

/// The file that a descriptor names, held to its digest and size.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = layout.join("blobs/sha256").join(digest);
    let content = std::fs::read(&path).unwrap();
    assert_eq!(sha256(&content), digest);
    assert_eq!(descriptor["size"], content.len());
    path
}

/// What Istio's agent and Envoy Gateway load of an image: `PrepareFetch` and `extractOCIStandardImage` of istio
/// pkg/wasm/imagefetcher.go (commit 01348d9) and envoyproxy/gateway internal/wasm/imagefetcher.go (0b8ea0e). No
/// manifest of Docker's; the last layer of the one type; the first file in it whose base name is plugin.wasm.
fn fetched(layout: &Path, scratch: &Path) -> Option<Vec<u8>> {
    let manifest = manifest(layout);
    assert_ne!(manifest["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    let last = manifest["layers"].as_array().unwrap().last().unwrap();
    assert_eq!(last["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let path = blob(layout, last);
    let list = String::from_utf8(run(Command::new("tar").arg("-tzf").arg(&path))).unwrap();
    let name = list.lines().find(|name| name.rsplit('/').next() == Some("plugin.wasm"))?;
    run(Command::new("tar").arg("-xzf").arg(&path).arg("-C").arg(scratch).arg(name));
    Some(std::fs::read(scratch.join(name)).unwrap())
}

#[test]
fn packages_are_what_gateways_and_clusters_take() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let modules = root().join("target/wasm");
    std::fs::write(at("daemon"), tiny_binary()).unwrap();
    let output = package(&modules, &at("daemon"), &at("out"));
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let said = json(stdout.lines().last().unwrap().as_bytes());

    // The same from other folders, byte by byte.
    std::fs::create_dir(at("other")).unwrap();
    for name in ["router", "feeder", "meter"] {
        let file = format!("{name}.wasm");
        std::fs::copy(modules.join(&file), at("other").join(&file)).unwrap();
    }
    assert!(package(&at("other"), &at("daemon"), &at("again")).status.success());
    let packaged = files(&at("out"));
    assert!(packaged == files(&at("again")), "a package depends on more than its files");
    // Not over it, and the file that is no package's is not lost.
    let again = package(&modules, &at("daemon"), &at("out"));
    assert_eq!(again.status.code(), Some(64), "{again:?}");

    let sums = String::from_utf8(packaged[Path::new("SHA256SUMS")].clone()).unwrap();
    assert_eq!(sums.lines().count(), packaged.len() - 1);
    run(Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(at("out")));

    let images = said["images"].as_array().unwrap();
    let names: Vec<_> = images.iter().map(|image| image["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["router", "feeder", "meter", "queue-scorer", "wasm-epp"]);
    for image in images {
        let name = image["name"].as_str().unwrap();
        let layout = at("out").join("images").join(name);
        let module = fetched(&layout, folder.path());
        let expected = (name != "wasm-epp")
            .then(|| std::fs::read(modules.join(name).with_extension("wasm")).unwrap());
        assert!(module == expected, "{name}");
        assert_eq!(image["module_sha256"].as_str(), expected.map(|m| sha256(&m)).as_deref());
        let index = json(&packaged[&PathBuf::from(format!("images/{name}/index.json"))]);
        assert_eq!(image["digest"], index["manifests"][0]["digest"]);
        unpacked_layers_are_what_the_configuration_says(&layout);
        the_archive_is_the_layout(&layout);
    }
    the_daemons_image_is_a_root_file_system(&at("out/images/wasm-epp"), &modules, folder.path());
    bills_are_of_the_crates(&packaged);
    gos_library_agrees(&at("out/images"), &at("by-go"), &modules);

    let dynamic = package(&modules, &wasm_epp().unwrap(), &at("dynamic"));
    assert_eq!(dynamic.status.code(), Some(64), "{dynamic:?}");
    let stderr = String::from_utf8(dynamic.stderr).unwrap();
    assert!(stderr.contains("is linked dynamically") && stderr.contains("musl"), "{stderr}");
    assert!(!at("dynamic").exists());
    std::fs::write(at("other/feeder.wasm"), b"\0asm\x0d\0\x01\0").unwrap();
    let component = package(&at("other"), &at("daemon"), &at("component"));
    assert_eq!(component.status.code(), Some(64), "{component:?}");
}

fn unpacked_layers_are_what_the_configuration_says(layout: &Path) {
    let manifest = manifest(layout);
    let config = json(&std::fs::read(blob(layout, &manifest["config"])).unwrap());
    assert_eq!((&config["os"], &config["architecture"]), (&"linux".into(), &"amd64".into()));
    let layers = manifest["layers"].as_array().unwrap();
    let digests: Vec<Value> = layers
        .iter()
        .map(|layer| {
            let mut tar = Vec::new();
            let file = std::fs::File::open(blob(layout, layer)).unwrap();
            flate2::read::GzDecoder::new(file).read_to_end(&mut tar).unwrap();
            format!("sha256:{}", sha256(&tar)).into()
        })
        .collect();
    assert_eq!(config["rootfs"]["diff_ids"], Value::from(digests));
}

fn the_archive_is_the_layout(layout: &Path) {
    let archive = layout.with_extension("tar");
    let folder = tempfile::tempdir().unwrap();
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(folder.path()));
    let mut unpacked = files(folder.path());
    let docker = json(&unpacked.remove(Path::new("manifest.json")).unwrap());
    assert!(unpacked == files(layout));
    let [image] = docker.as_array().unwrap().as_slice() else { panic!("{docker}") };
    let digest = |of: &Value| of["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
    let manifest = manifest(layout);
    assert_eq!(image["Config"], digest(&manifest["config"]));
    let layers: Vec<_> = manifest["layers"].as_array().unwrap().iter().map(digest).collect();
    assert_eq!(image["Layers"], Value::from(layers));
}

fn the_daemons_image_is_a_root_file_system(layout: &Path, modules: &Path, scratch: &Path) {
    let disk = scratch.join("disk");
    std::fs::create_dir(&disk).unwrap();
    let manifest = manifest(layout);
    for layer in manifest["layers"].as_array().unwrap() {
        run(Command::new("tar").arg("-xzf").arg(blob(layout, layer)).arg("-C").arg(&disk));
    }
    let config = json(&std::fs::read(blob(layout, &manifest["config"])).unwrap());
    let entry = config["config"]["Entrypoint"][0].as_str().unwrap().trim_start_matches('/');
    run(&mut Command::new(disk.join(entry)));
    // As a builder of images would make it.
    let recipe = std::fs::read_to_string(root().join("envoy/kubernetes/Containerfile")).unwrap();
    let user = format!("USER {}", config["config"]["User"].as_str().unwrap());
    let entry = format!("ENTRYPOINT {}", config["config"]["Entrypoint"]);
    for line in [user, entry] {
        assert!(recipe.lines().any(|have| have == line), "no {line} in {recipe}");
    }
    let (user, _) = config["config"]["User"].as_str().unwrap().split_once(':').unwrap();
    let users = std::fs::read_to_string(disk.join("etc/passwd")).unwrap();
    assert!(users.lines().any(|line| line.starts_with(&format!("nonroot:x:{user}:"))), "{users}");
    for name in ["router", "feeder", "meter", "queue-scorer"] {
        let file = format!("{name}.wasm");
        let read = |folder: &Path| std::fs::read(folder.join(&file)).unwrap();
        assert!(read(&disk.join("modules")) == read(modules), "{file}");
    }
}

/// Held to the graph that `cargo metadata` resolves, and to what the parts are known to be made of.
fn bills_are_of_the_crates(packaged: &BTreeMap<PathBuf, Vec<u8>>) {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let check = |name: &str, target: &str, with: &[&str], without: &[&str]| {
        let path = PathBuf::from(format!("sbom/{name}.cdx.json"));
        let text = std::str::from_utf8(&packaged[&path]).unwrap();
        assert!(!text.contains(root().to_str().unwrap()), "a path of this machine in {path:?}");
        let bill = json(&packaged[&path]);
        assert_eq!(
            (&bill["bomFormat"], &bill["specVersion"]),
            (&"CycloneDX".into(), &"1.5".into())
        );
        let components = bill["components"].as_array().unwrap();
        let listed: BTreeSet<(&str, &str)> = components
            .iter()
            .map(|c| (c["name"].as_str().unwrap(), c["version"].as_str().unwrap()))
            .collect();
        let resolved = json(&run(Command::new("cargo")
            .args(["metadata", "--format-version", "1", "--locked", "--offline"])
            .args(["--filter-platform", target])
            .current_dir(root())));
        let packages = resolved["packages"].as_array().unwrap();
        let known: BTreeSet<(&str, &str)> = packages
            .iter()
            .map(|p| (p["name"].as_str().unwrap(), p["version"].as_str().unwrap()))
            .collect();
        assert!(listed.is_subset(&known), "{:?}", listed.difference(&known));
        let names: BTreeSet<&str> = listed.iter().map(|(name, _)| *name).collect();
        for name in with {
            assert!(names.contains(name), "{name} is missing in {path:?}");
        }
        for name in without {
            assert!(!names.contains(name), "{name} is in {path:?}");
        }
        for component in components {
            let named = |key: &str| component[key].as_str().unwrap();
            // Every crate has a license, and those of the registry the lock file's checksum.
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            if component.get("purl").is_some() {
                let entry = format!(
                    "name = \"{}\"\nversion = \"{}\"\nsource = \"registry+https://github.com/rust-lang/crates.io-index\"\nchecksum = \"{}\"",
                    named("name"),
                    named("version"),
                    component["hashes"][0]["content"].as_str().unwrap(),
                );
                assert!(lock.contains(&entry), "{component}");
            }
        }
        listed.len()
    };
    let modules = check(
        "modules",
        "wasm32-wasip1",
        &["router", "feeder", "meter", "proxy-wasm", "minijinja", "serde_json"],
        &["tokio", "proptest", "wasm-epp", "wasmtime"],
    );
    let daemon = check(
        "wasm-epp",
        "x86_64-unknown-linux-musl",
        &["wasm-epp", "tokio", "zeromq", "wasmtime", "serde", "tokenizers"],
        &["proptest", "hf-hub", "proxy-wasm", "testbed"],
    );
    assert!(modules < daemon, "{modules} {daemon}");
}

/// By go-containerregistry, through a registry.
fn gos_library_agrees(images: &Path, out: &Path, modules: &Path) {
    let folder = out.parent().unwrap();
    let Some(program) = go_program("packages", folder) else { return };
    std::fs::create_dir(out).unwrap();
    let said = String::from_utf8(run(Command::new(&program).arg(images).arg(out))).unwrap();
    assert!(said.contains("wasm-epp: no module: no plugin.wasm in the last layer"), "{said}");
    let loaded = files(out);
    assert_eq!(loaded.len(), 4, "{said}");
    for (file, content) in loaded {
        assert!(content == std::fs::read(modules.join(&file)).unwrap(), "{file:?}");
    }
}

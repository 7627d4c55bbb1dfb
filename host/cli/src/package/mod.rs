//! `wasm-epp package`: what is given to others. Modules as images that gateways fetch, the daemon as an image with
//! nothing but itself and the modules, bills of materials, and checksums of all of it. The same files in give the
//! same bytes out.

mod elf;
mod error;
mod image;
mod sbom;
mod tar;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use self::error::PackageError;
use self::image::Image;
use self::tar::Tar;

/// Modules of a gateway.
const GATEWAY: [&str; 3] = ["router", "feeder", "meter"];
/// User and group of the daemon's image: `nonroot` of distroless images.
const NONROOT: &str = "65532:65532";
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/sbin/nologin\n\
    nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
const GROUP: &[u8] = b"root:x:0:\nnonroot:x:65532:\n";

/// What to package.
#[derive(Debug)]
pub struct Options {
    /// Folder with `router.wasm`, `feeder.wasm` and `meter.wasm`.
    pub modules: PathBuf,
    /// Further modules, each an image named after its file.
    pub more_modules: Vec<PathBuf>,
    /// A static binary of the daemon, for the image `wasm-epp`.
    pub daemon: Option<PathBuf>,
    /// The source tree, whose lock file says which crates there are.
    pub source: PathBuf,
    /// Where it all goes: a folder that does not exist or is empty.
    pub out: PathBuf,
}

/// What was packaged.
#[derive(Debug)]
pub struct Packaged {
    /// Files, in the order they were written.
    pub written: Vec<PathBuf>,
    /// Images by name, with the digests of their manifests and of the module in them.
    pub images: Vec<(String, String, Option<String>)>,
}

/// Writes the package.
///
/// # Errors
/// When the folder is not empty, a file is not what it should be, Cargo cannot say the crates, or the system
/// refuses.
pub fn package(options: &Options) -> Result<Packaged, PackageError> {
    let version = env!("CARGO_PKG_VERSION");
    let out = &options.out;
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(PackageError::Occupied(out.clone()));
    }
    let gateway = GATEWAY.map(|name| options.modules.join(name).with_extension("wasm"));
    let mut modules = Vec::new();
    for path in gateway.iter().chain(&options.more_modules) {
        let bytes = read(path)?;
        if !bytes.starts_with(b"\0asm\x01\0\0\0") {
            return Err(PackageError::NotWasm(path.clone()));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if modules.iter().any(|(known, _)| *known == name) {
            return Err(PackageError::Twice(name));
        }
        modules.push((name, bytes));
    }
    let daemon = options.daemon.as_ref().map(|path| {
        let bytes = read(path)?;
        let architecture = elf::static_architecture(&bytes)
            .map_err(|what| PackageError::Binary { path: path.clone(), what })?;
        Ok((bytes, architecture))
    });
    let daemon = daemon.transpose()?;
    let lock = options.source.join("Cargo.lock");
    let checksums = sbom::checksums(&String::from_utf8_lossy(&read(&lock)?));
    let crates =
        |of, packages: &[&str], target| sbom::crates(&options.source, of, packages, target);

    let mut written = Vec::new();
    let mut images = Vec::new();
    let folder = out.join("images");
    for (name, bytes) in &modules {
        let image = module_image(name, bytes)?;
        let digest = image.write(&folder, version, &mut written)?;
        images.push((name.clone(), digest, Some(hex_sha256(bytes))));
    }
    let mut bills = vec![("modules", files(&modules[..GATEWAY.len()]), {
        crates("the modules", &GATEWAY, "wasm32-wasip1")?
    })];
    if let Some((binary, architecture)) = &daemon {
        let image = daemon_image(binary, architecture, &modules)?;
        images.push((image.name.clone(), image.write(&folder, version, &mut written)?, None));
        let target = match *architecture {
            "arm64" => "aarch64-unknown-linux-musl",
            _ => "x86_64-unknown-linux-musl",
        };
        let file = ("wasm-epp".to_owned(), hex_sha256(binary));
        bills.push(("wasm-epp", vec![file], crates("the daemon", &["wasm-epp"], target)?));
    }
    for (name, files, crates) in bills {
        let bill = sbom::bill(name, version, &files, &crates, &checksums);
        let path = out.join("sbom").join(format!("{name}.cdx.json"));
        write(&path, format!("{bill:#}\n").as_bytes(), &mut written)?;
    }
    let sums = sums(out, &written)?;
    write(&out.join("SHA256SUMS"), sums.as_bytes(), &mut written)?;
    Ok(Packaged { written, images })
}

impl Packaged {
    /// For people.
    pub fn text(&self) -> String {
        let line = |(name, digest, module): &(String, String, Option<String>)| {
            let module = module.as_ref().map(|sum| format!("  plugin.wasm {sum}"));
            format!("{name}  {digest}{}\n", module.unwrap_or_default())
        };
        self.images.iter().map(line).collect()
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let image = |(name, digest, module): &(String, String, Option<String>)| json!({"name": name, "digest": digest, "module_sha256": module});
        json!({
            "images": self.images.iter().map(image).collect::<Vec<_>>(),
            "written": self.written,
        })
    }
}

fn files(modules: &[(String, Vec<u8>)]) -> Vec<(String, String)> {
    modules.iter().map(|(name, bytes)| (format!("{name}.wasm"), hex_sha256(bytes))).collect()
}

fn module_image(name: &str, bytes: &[u8]) -> Result<Image, PackageError> {
    let mut tar = Tar::default();
    tar.file("plugin.wasm", 0o644, bytes)?;
    Ok(Image {
        name: name.to_owned(),
        title: format!("proxy-wasm module {name}.wasm of wasm-epp"),
        layers: vec![tar.finish()],
        // Nothing in it is a processor's; but an image has to be of one.
        architecture: "amd64",
        run: json!({}),
    })
}

/// Two layers: who the user is with the modules, and the binary.
fn daemon_image(
    binary: &[u8],
    architecture: &'static str,
    modules: &[(String, Vec<u8>)],
) -> Result<Image, PackageError> {
    let mut base = Tar::default();
    base.folder("etc", 0o755)?;
    base.file("etc/group", 0o644, GROUP)?;
    base.file("etc/passwd", 0o644, PASSWD)?;
    base.folder("modules", 0o755)?;
    for (name, bytes) in modules {
        base.file(&format!("modules/{name}.wasm"), 0o644, bytes)?;
    }
    let mut top = Tar::default();
    top.folder("usr", 0o755)?;
    top.folder("usr/bin", 0o755)?;
    top.file("usr/bin/wasm-epp", 0o755, binary)?;
    Ok(Image {
        name: "wasm-epp".to_owned(),
        title: "the daemon of wasm-epp, with the modules of a gateway under /modules".to_owned(),
        layers: vec![base.finish(), top.finish()],
        architecture,
        run: json!({
            "User": NONROOT,
            "Entrypoint": ["/usr/bin/wasm-epp"],
            "Env": ["PATH=/usr/bin"],
            "WorkingDir": "/",
        }),
    })
}

/// As `sha256sum` writes them, for `sha256sum --check`.
fn sums(out: &Path, written: &[PathBuf]) -> Result<String, PackageError> {
    let sorted: BTreeSet<&PathBuf> = written.iter().collect();
    let line = |path: &&PathBuf| {
        let name = path.strip_prefix(out).unwrap_or(path);
        Ok(format!("{}  {}\n", hex_sha256(&read(path)?), name.display()))
    };
    sorted.iter().map(line).collect()
}

fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, PackageError> {
    fs::read(path).map_err(|source| PackageError::Io {
        what: "reading",
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, content: &[u8], written: &mut Vec<PathBuf>) -> Result<(), PackageError> {
    let failed = |source| PackageError::Io { what: "writing", path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(path, content).map_err(failed)?;
    written.push(path.to_owned());
    Ok(())
}

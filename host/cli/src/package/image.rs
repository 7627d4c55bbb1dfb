//! Images as an OCI image layout (image-spec 1.1, `image-layout.md`) and as one archive of it.
//!
//! A module's image is the *compat* variant of the Wasm image specification: its last layer is
//! `application/vnd.oci.image.layer.v1.tar+gzip` with a file `plugin.wasm`. Istio (`pkg/wasm/imagefetcher.go`) and
//! Envoy Gateway (`internal/wasm/imagefetcher.go`) try that one first.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

use super::tar::Tar;
use super::{PackageError, hex_sha256, write};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What an image is made of.
pub(super) struct Image {
    /// Its repository's name, also the name of its folder.
    pub(super) name: String,
    /// One line about it.
    pub(super) title: String,
    /// Archives, lowest first.
    pub(super) layers: Vec<Vec<u8>>,
    /// `amd64` or another of Go's names.
    pub(super) architecture: &'static str,
    /// The member `config` of the image's configuration.
    pub(super) run: Value,
}

/// Bytes under the name of their digest.
struct Blob {
    hex: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn of(bytes: Vec<u8>) -> Self {
        Self { hex: hex_sha256(&bytes), bytes }
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({
            "mediaType": media_type,
            "digest": format!("sha256:{}", self.hex),
            "size": self.bytes.len(),
        })
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }
}

impl Image {
    /// Writes the layout into the folder `NAME` of `out` and the archive beside it as `NAME.tar`. Returns the digest of
    /// the manifest.
    pub(super) fn write(
        &self,
        out: &Path,
        version: &str,
        written: &mut Vec<PathBuf>,
    ) -> Result<String, PackageError> {
        let folder = out.join(&self.name);
        let packed = |tar: &Vec<u8>| match gzip(tar) {
            Ok(bytes) => Ok(Blob::of(bytes)),
            Err(source) => Err(PackageError::Io {
                what: "compressing a layer of",
                path: folder.clone(),
                source,
            }),
        };
        let layers: Vec<Blob> = self.layers.iter().map(packed).collect::<Result<_, _>>()?;
        let diff_ids: Vec<String> =
            self.layers.iter().map(|tar| format!("sha256:{}", hex_sha256(tar))).collect();
        let config = Blob::of(bytes(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })));
        let list: Vec<Value> = layers.iter().map(|layer| layer.descriptor(LAYER)).collect();
        let manifest = Blob::of(bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(CONFIG),
            "layers": list,
            "annotations": {
                "org.opencontainers.image.title": self.name,
                "org.opencontainers.image.description": self.title,
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        })));
        let mut entry = manifest.descriptor(MANIFEST);
        entry["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": version});
        let index = bytes(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}));
        // What `docker load` before version 25, `crane` and `skopeo copy docker-archive:` look for.
        let docker = bytes(&json!([{
            "Config": config.path(),
            "RepoTags": [format!("{}:{version}", self.name)],
            "Layers": layers.iter().map(Blob::path).collect::<Vec<_>>(),
        }]));

        let digest = format!("sha256:{}", manifest.hex);
        let mut blobs: Vec<Blob> = layers;
        blobs.extend([config, manifest]);
        blobs.sort_by(|one, other| one.hex.cmp(&other.hex));
        // Two layers may be the same.
        blobs.dedup_by(|one, other| one.hex == other.hex);
        let marker = bytes(&json!({"imageLayoutVersion": "1.0.0"}));
        let mut files = vec![("oci-layout".to_owned(), marker), ("index.json".to_owned(), index)];
        files.extend(blobs.into_iter().map(|blob| (blob.path(), blob.bytes)));

        let mut tar = Tar::default();
        tar.folder("blobs", 0o755)?;
        tar.folder("blobs/sha256", 0o755)?;
        for (path, content) in &files {
            tar.file(path, 0o644, content)?;
            write(&folder.join(path), content, written)?;
        }
        tar.file("manifest.json", 0o644, &docker)?;
        write(&out.join(format!("{}.tar", self.name)), &tar.finish(), written)?;
        Ok(digest)
    }
}

/// Members of objects are sorted, so that the same value is the same bytes.
fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Of time 0 and no named system, so that the same bytes come out anywhere.
fn gzip(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder =
        GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish())
}

//! Certificates by the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether there is an `openssl` to make certificates, which CI has.
pub(crate) fn is_there() -> bool {
    let error = match Command::new("openssl").arg("version").output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => format!("{output:?}"),
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("CI").is_none(), "no openssl: {error}");
    eprintln!("skipped: no openssl: {error}");
    false
}

/// A folder of authorities and of certificates by them.
pub(crate) struct Pki(pub(crate) tempfile::TempDir);

/// Files of a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pki {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn files(&self, name: &str) -> Pair {
        let file = |kind: &str| self.0.path().join(format!("{name}.{kind}"));
        Pair { certificate: file("pem"), key: file("key") }
    }

    pub(crate) fn authority(&self, name: &str) -> Pair {
        let files = self.files(name);
        openssl(
            Command::new("openssl")
                .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-nodes", "-days", "2", "-subj", &format!("/CN={name}")])
                .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout"])
                .arg(&files.key)
                .arg("-out")
                .arg(&files.certificate),
        );
        files
    }

    /// A certificate for a DNS name, good for two days.
    pub(crate) fn issue(&self, by: &Pair, dns: &str) -> Pair {
        self.issue_until(by, dns, "21000101000000Z")
    }

    /// One whose time is over.
    pub(crate) fn issue_expired(&self, by: &Pair, dns: &str) -> Pair {
        self.issue_until(by, dns, "20240102000000Z")
    }

    fn issue_until(&self, by: &Pair, dns: &str, end: &str) -> Pair {
        let number = std::fs::read_dir(self.0.path()).unwrap().count();
        let files = self.files(&format!("{dns}-{number}"));
        let path = |kind: &str| files.key.with_extension(kind);
        openssl(
            Command::new("openssl")
                .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-nodes", "-subj", &format!("/CN={dns}"), "-keyout"])
                .arg(&files.key)
                .arg("-out")
                .arg(path("csr")),
        );
        std::fs::write(path("index"), "").unwrap();
        let text = format!(
            "[ca]\ndefault_ca = own\n[own]\ndatabase = {}\nnew_certs_dir = {}\nrand_serial = yes\n\
             default_md = sha256\npolicy = any\nx509_extensions = leaf\nemail_in_dn = no\n\
             [any]\ncommonName = supplied\n\
             [leaf]\nbasicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n\
             extendedKeyUsage = serverAuth,clientAuth\nsubjectAltName = DNS:{dns}\n",
            path("index").display(),
            self.0.path().display(),
        );
        std::fs::write(path("cnf"), text).unwrap();
        openssl(
            Command::new("openssl")
                .args(["ca", "-batch", "-notext", "-startdate", "20240101000000Z"])
                .args(["-enddate", end, "-config"])
                .arg(path("cnf"))
                .arg("-in")
                .arg(path("csr"))
                .arg("-cert")
                .arg(&by.certificate)
                .arg("-keyfile")
                .arg(&by.key)
                .arg("-out")
                .arg(&files.certificate),
        );
        files
    }
}

fn openssl(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A folder as Kubernetes mounts a secret: files are links into a folder that a link names, and that link is
/// replaced by a rename.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Mounted {
    pub(crate) fn new(folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the folder hold this certificate, and these authorities to hold the other side's to.
    pub(crate) fn put(&self, pair: &Pair, authorities: &[&Pair]) {
        let ca: String = authorities.iter().map(|by| text(&by.certificate)).collect();
        self.put_texts(&ca, &text(&pair.certificate), &text(&pair.key));
    }

    pub(crate) fn put_texts(&self, ca: &str, certificate: &str, key: &str) {
        let versions = (0..).map(|number| format!("..version-{number}"));
        let version = versions.into_iter().find(|name| !self.0.join(name).exists()).unwrap();
        std::fs::create_dir(self.0.join(&version)).unwrap();
        for (name, content) in [("ca.crt", ca), ("tls.crt", certificate), ("tls.key", key)] {
            std::fs::write(self.0.join(&version).join(name), content).unwrap();
            let link = self.file(name);
            if !link.is_symlink() {
                std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
            }
        }
        std::os::unix::fs::symlink(&version, self.0.join("..data_tmp")).unwrap();
        std::fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
    }
}

pub(crate) fn text(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap()
}

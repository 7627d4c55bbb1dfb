//! Bills of materials: the crates that a part was built of, as CycloneDX 1.5 in JSON. Without a serial number and
//! a time, so that the same crates are the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::PackageError;

/// One crate of a list; sorted by name, then version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Crate {
    name: String,
    version: String,
    license: String,
    /// Of this repository.
    is_own: bool,
}

/// The crates that are linked into, or write code for, the packages `of` a target: what Cargo resolves, without
/// those of tests and without features that are off.
pub(super) fn crates(
    source: &Path,
    what: &'static str,
    packages: &[&str],
    target: &str,
) -> Result<BTreeSet<Crate>, PackageError> {
    let failed = |why: String| PackageError::Crates { of: what, why };
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(source)
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}|{l}", "--target", target]);
    for package in packages {
        command.args(["--package", package]);
    }
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().filter(|line| !line.is_empty());
    lines.map(|line| parse(line).ok_or_else(|| failed(format!("the line {line:?}")))).collect()
}

/// `serde v1.0.228|MIT OR Apache-2.0`, with ` (proc-macro)`, ` (PATH)` or ` (*)` behind the version or the end.
fn parse(line: &str) -> Option<Crate> {
    let (package, license) = line.split_once('|')?;
    let mut words = package.split(' ');
    let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
    let is_own = words.any(|word| word.starts_with("(/"));
    let license = license.trim_end_matches(" (*)").trim();
    Some(Crate {
        name: name.to_owned(),
        version: version.to_owned(),
        license: license.replace('/', " OR ").replace("  ", " "),
        is_own,
    })
}

/// Checksums by (name, version), as the lock file has them.
pub(super) fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for block in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let mut lines = block.lines();
            let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""))?;
            Some(line.trim_end_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(sum)) =
            (value("name"), value("version"), value("checksum"))
        {
            found.insert((name, version), sum);
        }
    }
    found
}

/// The bill of one part; `files` are what it is delivered as, by name and SHA-256.
pub(super) fn bill(
    name: &str,
    version: &str,
    files: &[(String, String)],
    crates: &BTreeSet<Crate>,
    checksums: &BTreeMap<(String, String), String>,
) -> Value {
    let component = |c: &Crate| {
        let url = format!("pkg:cargo/{}@{}", c.name, c.version);
        let mut value = json!({
            "type": "library", "bom-ref": url, "name": c.name, "version": c.version,
        });
        // What is here only is in no registry.
        if !c.is_own {
            value["purl"] = json!(url);
        }
        if !c.license.is_empty() {
            value["licenses"] = json!([{"expression": c.license}]);
        }
        if let Some(sum) = checksums.get(&(c.name.clone(), c.version.clone())) {
            value["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
        }
        value
    };
    let file = |(name, sum): &(String, String)| {
        json!({
            "type": "file", "name": name, "hashes": [{"alg": "SHA-256", "content": sum}],
        })
    };
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "application", "bom-ref": name, "name": name, "version": version,
            "licenses": [{"expression": "Apache-2.0"}],
            "components": files.iter().map(file).collect::<Vec<_>>(),
        }},
        "components": crates.iter().map(component).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cargo_are_read() {
        let check = |line: &str, expected: (&str, &str, &str, bool)| {
            let Crate { name, version, license, is_own } = parse(line).unwrap();
            assert_eq!((name.as_str(), version.as_str(), license.as_str(), is_own), expected);
        };
        check("serde v1.0.2|MIT OR Apache-2.0", ("serde", "1.0.2", "MIT OR Apache-2.0", false));
        check(
            "serde_derive v1.0.2 (proc-macro)|MIT/Apache-2.0 (*)",
            ("serde_derive", "1.0.2", "MIT OR Apache-2.0", false),
        );
        check("feed v0.1.0 (/home/me/feed)|Apache-2.0", ("feed", "0.1.0", "Apache-2.0", true));
        assert_eq!(parse("warning: something"), None);
    }
}

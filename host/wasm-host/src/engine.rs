//! The runtime that modules are compiled with, and compiled modules.

use crate::abi::AbiVersion;
use crate::abi::imports::{self, Imports};
use crate::error::LoadError;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wasmtime::{Config, ExternType, OptLevel};

/// One tick of the clock that wall time is measured with.
pub(crate) const EPOCH_TICK: Duration = Duration::from_millis(1);

/// What the runtime and all virtual machines on it share.
#[derive(Clone)]
pub struct Engine {
    inner: wasmtime::Engine,
    imports: Arc<Imports>,
}

impl Engine {
    /// A runtime that counts fuel and can interrupt guests.
    ///
    /// # Errors
    /// [`LoadError::Runtime`] if this machine has no compiler back end.
    pub fn new() -> Result<Self, LoadError> {
        let mut config = Config::new();
        config.consume_fuel(true);
        config.epoch_interruption(true);
        config.cranelift_opt_level(OptLevel::Speed);
        config.max_wasm_stack(512 * 1024);
        // What V8 in Envoy runs without flags, less what no guest of this ABI can be reached through.
        config.wasm_memory64(false);
        config.wasm_multi_memory(false);
        config.wasm_component_model(false);
        let runtime = |cause: wasmtime::Error| LoadError::Runtime(format!("{cause:#}"));
        let inner = wasmtime::Engine::new(&config).map_err(runtime)?;
        let imports = Arc::new(Imports::new(&inner).map_err(runtime)?);
        Ok(Self { inner, imports })
    }

    pub(crate) fn imports(&self) -> &Imports {
        &self.imports
    }

    pub(crate) fn inner(&self) -> &wasmtime::Engine {
        &self.inner
    }

    /// Starts the clock of wall-time limits; it ends with the engine.
    pub(crate) fn start_ticking(&self) {
        let weak = self.inner.weak();
        std::thread::spawn(move || {
            while let Some(engine) = weak.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(EPOCH_TICK);
            }
        });
    }
}

/// A compiled module whose version and imports were checked.
#[derive(Clone)]
pub struct Module {
    pub(crate) name: Arc<str>,
    pub(crate) inner: wasmtime::Module,
    pub(crate) abi: AbiVersion,
    /// Part of what decides whether two plugins share a virtual machine.
    pub(crate) digest: u64,
}

impl Module {
    /// Compiles `code`, which is a binary module or its text form.
    ///
    /// # Errors
    /// Everything of [`LoadError`] that can be known before the module runs.
    pub fn new(
        engine: &Engine,
        name: impl Into<String>,
        code: impl AsRef<[u8]>,
    ) -> Result<Self, LoadError> {
        let (name, code) = (name.into(), code.as_ref());
        let inner = wasmtime::Module::new(engine.inner(), code).map_err(|cause| {
            LoadError::Invalid { module: name.clone(), cause: format!("{cause:#}") }
        })?;
        let exports = |export: &str| matches!(inner.get_export(export), Some(ExternType::Func(_)));
        let abi = if exports("proxy_abi_version_0_2_1") {
            AbiVersion::V0_2_1
        } else if exports("proxy_abi_version_0_2_0") {
            AbiVersion::V0_2_0
        } else {
            let old = exports("proxy_abi_version_0_1_0");
            return Err(LoadError::AbiVersion { module: name, old });
        };
        engine.imports.check(&name, &inner, abi)?;
        for (callback, expected) in crate::vm::exports::CALLBACKS {
            match inner.get_export(callback) {
                Some(ExternType::Func(found)) if !expected.matches(&found) => {
                    return Err(LoadError::ExportType {
                        module: name,
                        name: (*callback).to_owned(),
                        found: imports::signature(&found),
                        expected: expected.to_string(),
                    });
                }
                _ => {}
            }
        }
        if !exports("malloc") && !exports("proxy_on_memory_allocate") {
            let export = "proxy_on_memory_allocate or malloc";
            return Err(LoadError::MissingExport { module: name, name: export });
        }
        if !matches!(inner.get_export("memory"), Some(ExternType::Memory(_))) {
            return Err(LoadError::MissingExport { module: name, name: "memory" });
        }
        Ok(Self { name: name.into(), inner, abi, digest: digest(code) })
    }

    /// Reads and compiles a file; the module's name is the file's, without its ending.
    ///
    /// # Errors
    /// [`LoadError::Invalid`] if the file cannot be read, else as [`new`](Self::new).
    pub fn from_file(engine: &Engine, path: impl AsRef<Path>) -> Result<Self, LoadError> {
        let path = path.as_ref();
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let code = std::fs::read(path).map_err(|cause| LoadError::Invalid {
            module: name.clone(),
            cause: format!("reading {}: {cause}", path.display()),
        })?;
        Self::new(engine, name, code)
    }

    /// Name the module was loaded under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Version of the ABI that it speaks.
    pub fn abi(&self) -> AbiVersion {
        self.abi
    }

    /// Names of the functions it exports.
    pub fn exports(&self) -> Vec<String> {
        let functions =
            self.inner.exports().filter(|export| matches!(export.ty(), ExternType::Func(_)));
        functions.map(|export| export.name().to_owned()).collect()
    }
}

/// FNV-1a: only to tell modules apart, not to authenticate them.
fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

//! What can go wrong: loading a module, starting a plugin, running a callback, using the host.

use std::fmt;
use std::time::Duration;

/// Why a module cannot be loaded or a plugin cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The runtime could not be set up on this machine.
    #[error("setting up the wasm runtime: {0}")]
    Runtime(String),
    /// The bytes are not a WebAssembly module, or use features that are switched off.
    #[error("module {module}: not a valid wasm module: {cause}")]
    Invalid {
        /// Name the module was loaded under.
        module: String,
        /// What the compiler said.
        cause: String,
    },
    /// None of the exports that name a version, or only that of 0.1.0.
    #[error(
        "module {module}: no export proxy_abi_version_0_2_1 or proxy_abi_version_0_2_0{}",
        if *.old { " (it speaks 0.1.0, which is not supported)" } else { "" }
    )]
    AbiVersion {
        /// Name the module was loaded under.
        module: String,
        /// Whether it speaks version 0.1.0.
        old: bool,
    },
    /// An import that no host function answers to.
    #[error("module {module}: missing import {namespace}.{name}")]
    MissingImport {
        /// Name the module was loaded under.
        module: String,
        /// First part of the import.
        namespace: String,
        /// Second part of the import.
        name: String,
    },
    /// An import of a known name with another type, or one that is not a function.
    #[error("module {module}: import {namespace}.{name} is {found}, expected {expected}")]
    ImportType {
        /// Name the module was loaded under.
        module: String,
        /// First part of the import.
        namespace: String,
        /// Second part of the import.
        name: String,
        /// Type the module has for it.
        found: String,
        /// Type the host has for it.
        expected: String,
    },
    /// An export that the host must have is not there.
    #[error("module {module}: no export {name}")]
    MissingExport {
        /// Name the module was loaded under.
        module: String,
        /// Which one, or which ones of which one suffices.
        name: &'static str,
    },
    /// A callback with parameters or results other than those of the ABI.
    #[error("module {module}: export {name} is {found}, expected {expected}")]
    ExportType {
        /// Name the module was loaded under.
        module: String,
        /// Name of the export.
        name: String,
        /// Type the module has for it.
        found: String,
        /// Type the ABI has for it.
        expected: String,
    },
    /// The module's own initial memory or tables exceed the limits, or instantiating it failed.
    #[error("module {module}: instantiating: {cause}")]
    Instantiate {
        /// Name the module was loaded under.
        module: String,
        /// What the runtime said.
        cause: String,
    },
    /// `proxy_on_vm_start` or `proxy_on_configure` returned false.
    #[error(
        "plugin {plugin}: {callback} returned false{}",
        .said.as_ref().map(|said| format!(", having logged: {said}")).unwrap_or_default()
    )]
    Rejected {
        /// Name of the plugin.
        plugin: String,
        /// Which of the two.
        callback: &'static str,
        /// What it had logged last in that callback, if anything.
        said: Option<String>,
    },
    /// A trap or a limit while the plugin started.
    #[error("plugin {plugin}: {failure}")]
    Failed {
        /// Name of the plugin.
        plugin: String,
        /// What happened.
        failure: Box<VmFailure>,
    },
}

/// Which limit a callback ran into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The guest trapped, or a host function let it trap as Envoy's does.
    #[error("trap: {0}")]
    Trap(String),
    /// The callback used up its fuel.
    #[error("out of fuel after {limit} units")]
    Fuel {
        /// Units allowed per callback.
        limit: u64,
    },
    /// The callback ran for too long.
    #[error("ran longer than {} ms", .limit.as_millis())]
    WallTime {
        /// Time allowed per callback.
        limit: Duration,
    },
    /// A host call that Envoy does not allow while a module starts or allocates.
    #[error("call of {function} while {phase}")]
    Restricted {
        /// Name of the import.
        function: &'static str,
        /// What the guest was doing.
        phase: &'static str,
    },
}

/// How a virtual machine ended. From then on none of its contexts gets a callback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmFailure {
    /// Name of the module.
    pub module: String,
    /// `vm_id` of the virtual machine.
    pub vm_id: String,
    /// Worker the virtual machine belonged to.
    pub worker: usize,
    /// Export that was called.
    pub callback: &'static str,
    /// Context it was called for; 0 while the module started.
    pub context: u32,
    /// What happened.
    pub cause: Cause,
    /// Whether the guest had asked for more memory than it may have.
    pub memory_denied: bool,
    /// Functions on the guest's stack, innermost first.
    pub backtrace: Vec<String>,
}

impl fmt::Display for VmFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "module {}, vm_id {:?}, worker {}: {} for context {}: {}",
            self.module, self.vm_id, self.worker, self.callback, self.context, self.cause
        )?;
        if self.memory_denied {
            write!(f, " (after being refused memory)")?;
        }
        for frame in &self.backtrace {
            write!(f, "\n  at {frame}")?;
        }
        Ok(())
    }
}

impl std::error::Error for VmFailure {}

/// Why the host refused a call of its embedder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// No plugin of that number, or it was removed.
    #[error("no plugin {0}")]
    UnknownPlugin(usize),
    /// No chain of that number.
    #[error("no chain {0}")]
    UnknownChain(usize),
    /// No stream of that number, or it was closed.
    #[error("no stream {0}")]
    UnknownStream(u64),
    /// A worker past the number the host was made with.
    #[error("no worker {worker}: there are {workers}")]
    UnknownWorker {
        /// Number asked for.
        worker: usize,
        /// How many there are.
        workers: usize,
    },
    /// Guests made as many things happen at one time.
    #[error("stopped after {delivered} events: guests keep each other busy")]
    Endless {
        /// How many things happened.
        delivered: usize,
    },
    /// Headers twice, data before headers, or anything after the end.
    #[error("stream {stream}: {what}")]
    OutOfOrder {
        /// Number of the stream.
        stream: u64,
        /// What was wrong about the order.
        what: &'static str,
    },
}

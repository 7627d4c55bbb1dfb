//! What the module exports to a proxy.

/// Packages a [`Scorer`](crate::Scorer) as a proxy-wasm module: on wasm32 it defines the exports, on
/// other targets it only checks that the type can be packaged.
///
/// There are no more exports than a scorer needs. The proxy calls into a module for every exported
/// callback, and a response callback would be called for every chunk of every stream.
///
/// With the SDK's feature `component` it makes a component instead (`wit/scorer.wit`).
#[cfg(not(feature = "component"))]
#[macro_export]
macro_rules! scorer {
    ($scorer:ty) => {
        const _: fn() -> $crate::Module<$scorer> = $crate::glue::module::<$scorer>;

        #[cfg(target_arch = "wasm32")]
        #[allow(missing_docs, unreachable_pub, reason = "called by the proxy, not by people")]
        #[allow(unsafe_code, reason = "an exported name is one that could clash")]
        mod wasm_epp_module {
            #[allow(unused_imports, reason = "the scorer may be named by an absolute path")]
            use super::*;

            std::thread_local! {
                static MODULE: ::std::cell::RefCell<$crate::Module<$scorer>> =
                    ::std::cell::RefCell::default();
            }

            #[cfg(target_os = "wasi")]
            unsafe extern "C" {
                fn __wasm_call_ctors();
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn _initialize() {
                // SAFETY: called once, by the host, before anything else.
                #[cfg(target_os = "wasi")]
                unsafe {
                    __wasm_call_ctors();
                }
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_abi_version_0_2_1() {}

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
                $crate::glue::allocate(size)
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_context_create(context: u32, parent: u32) {
                MODULE.with(|module| $crate::glue::create(module, context, parent));
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_configure(root: u32, _size: u32) -> u32 {
                MODULE
                    .with(|module| $crate::glue::configure(module, &$crate::glue::ProxyHost, root))
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_request_headers(stream: u32, _count: u32, _end: u32) -> u32 {
                MODULE.with(|module| {
                    $crate::glue::request_headers(module, &$crate::glue::ProxyHost, stream)
                })
            }

            #[unsafe(no_mangle)]
            pub extern "C" fn proxy_on_delete(context: u32) {
                MODULE.with(|module| $crate::glue::delete(module, context));
            }
        }
    };
}

/// Packages a [`Scorer`](crate::Scorer) as a component: on wasm32 it exports the interface of
/// `wit/scorer.wit`, on other targets it only checks that the type can be packaged.
///
/// Without the SDK's feature `component` it makes a proxy-wasm module instead.
#[cfg(feature = "component")]
#[macro_export]
macro_rules! scorer {
    ($scorer:ty) => {
        const _: fn() -> $crate::Module<$scorer> = $crate::glue::module::<$scorer>;

        #[cfg(target_arch = "wasm32")]
        #[allow(missing_docs, unreachable_pub, reason = "called by the host, not by people")]
        #[allow(unsafe_code, reason = "an exported name is one that could clash")]
        mod wasm_epp_component {
            #[allow(unused_imports, reason = "the scorer may be named by an absolute path")]
            use super::*;
            use $crate::component::bindings::exports::wasm_epp::scoring::scorer as interface;

            std::thread_local! {
                static SCORER: ::std::cell::RefCell<::std::option::Option<$scorer>> =
                    const { ::std::cell::RefCell::new(::std::option::Option::None) };
            }

            struct Component;

            impl $crate::component::Guest for Component {
                fn configure(
                    parameters: ::std::string::String,
                ) -> ::std::result::Result<interface::Needs, ::std::string::String> {
                    SCORER.with(|scorer| $crate::component::configure(scorer, &parameters))
                }

                fn score(
                    request: interface::RequestFeatures,
                    candidates: ::std::vec::Vec<interface::Candidate>,
                ) -> ::std::vec::Vec<::std::option::Option<f32>> {
                    SCORER.with(|scorer| $crate::component::score(scorer, request, candidates))
                }
            }

            $crate::component::export!(Component with_types_in $crate::component::bindings);
        }
    };
}

/// Packages an [`EndpointFilter`](crate::EndpointFilter) as `scorer!` does a scorer: it says 1 of the
/// endpoints that stay and 0 of the others. The picker's configuration names it among `filters`.
#[macro_export]
macro_rules! filter {
    ($filter:ty) => {
        $crate::scorer!($crate::Filtering<$filter>);
    };
}

/// What the exports do; public for the macro only.
pub mod glue {
    use std::cell::RefCell;

    use hostcalls::Host;
    use routing::Scorer;
    use serde::de::DeserializeOwned;

    use crate::Module;

    /// Action `Continue`.
    const CONTINUE: u32 = 0;

    /// An empty module of a scorer.
    pub fn module<S: Scorer + DeserializeOwned>() -> Module<S> {
        Module::default()
    }

    /// Memory that the host fills and the receiver of a host call's result owns: a boxed slice of
    /// exactly this size.
    pub fn allocate(size: usize) -> *mut u8 {
        Box::into_raw(vec![0u8; size].into_boxed_slice()).cast()
    }

    /// Runs with the module; skips if it is in use, which single-threaded callbacks never see.
    fn with<S, T>(module: &RefCell<Module<S>>, run: impl FnOnce(&mut Module<S>) -> T) -> Option<T> {
        module.try_borrow_mut().ok().map(|mut module| run(&mut module))
    }

    /// `proxy_on_context_create`.
    pub fn create<S>(module: &RefCell<Module<S>>, context: u32, parent: u32)
    where
        S: Scorer + DeserializeOwned,
    {
        with(module, |module| module.on_context_create(context, parent));
    }

    /// `proxy_on_configure`.
    pub fn configure<S>(module: &RefCell<Module<S>>, host: &impl Host, root: u32) -> u32
    where
        S: Scorer + DeserializeOwned,
    {
        with(module, |module| module.on_configure(host, root)).map_or(0, u32::from)
    }

    /// `proxy_on_request_headers`.
    pub fn request_headers<S>(module: &RefCell<Module<S>>, host: &impl Host, stream: u32) -> u32
    where
        S: Scorer + DeserializeOwned,
    {
        with(module, |module| module.on_request_headers(host, stream));
        CONTINUE
    }

    /// `proxy_on_delete`.
    pub fn delete<S>(module: &RefCell<Module<S>>, context: u32)
    where
        S: Scorer + DeserializeOwned,
    {
        with(module, |module| module.on_delete(context));
    }

    #[cfg(target_arch = "wasm32")]
    pub use hostcalls::proxy::ProxyHost;
}

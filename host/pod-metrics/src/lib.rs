//! Load of an inference engine, read from its Prometheus page.
//!
//! [`parse_page`] turns a page of vLLM or SGLang into an [`EngineLoad`]; [`Scraper`] fetches one
//! over HTTP. What a page does not say is `None`, never zero: an engine that does not answer
//! must not look idle.

mod lora;
mod page;
mod scan;
mod scrape;

pub use lora::LoraAdapters;
pub use page::{EngineLoad, MAX_PAGE_BYTES, parse_page};
pub use scan::PageError;
pub use scrape::{ScrapeError, Scraper};

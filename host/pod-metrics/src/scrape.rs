//! Fetching a page.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::page::{EngineLoad, MAX_PAGE_BYTES, parse_page};
use crate::scan::PageError;

/// Why there is no load of an engine.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The URL is not one, or not plain HTTP.
    #[error("not an http url: {url}")]
    Url {
        /// What was given.
        url: String,
    },
    /// No complete answer in time.
    #[error("no answer from {url} within {timeout:?}")]
    Timeout {
        /// The page.
        url: String,
        /// The limit.
        timeout: Duration,
    },
    /// No connection, or it broke.
    #[error("requesting {url}")]
    Request {
        /// The page.
        url: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer other than 200.
    #[error("{url} answered {status}")]
    Status {
        /// The page.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// More than [`MAX_PAGE_BYTES`].
    #[error("page of {url} exceeds {MAX_PAGE_BYTES} bytes")]
    TooLarge {
        /// The page.
        url: String,
    },
    /// The page is not UTF-8.
    #[error("page of {url} is not utf-8")]
    Utf8 {
        /// The page.
        url: String,
    },
    /// The page was received but cannot be read.
    #[error("page of {url}")]
    Page {
        /// The page.
        url: String,
        /// What is wrong with it.
        #[source]
        source: PageError,
    },
}

/// Fetches pages. One for all engines: it keeps their connections open between scrapes.
#[derive(Clone, Debug)]
pub struct Scraper {
    client: Client<HttpConnector, Empty<Bytes>>,
    timeout: Duration,
}

impl Scraper {
    /// `timeout` covers a whole scrape, from the connection to the last byte.
    pub fn new(timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(timeout));
        Self { client: Client::builder(TokioExecutor::new()).build(connector), timeout }
    }

    /// The load of the engine whose page is at `url`.
    pub async fn scrape(&self, url: &str) -> Result<EngineLoad, ScrapeError> {
        let uri = match url.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => uri,
            _ => return Err(ScrapeError::Url { url: url.to_owned() }),
        };
        match tokio::time::timeout(self.timeout, self.fetch(url, uri)).await {
            Ok(page) => parse_page(&page?)
                .map_err(|source| ScrapeError::Page { url: url.to_owned(), source }),
            Err(_) => Err(ScrapeError::Timeout { url: url.to_owned(), timeout: self.timeout }),
        }
    }

    async fn fetch(&self, url: &str, uri: Uri) -> Result<String, ScrapeError> {
        let failed = |source| ScrapeError::Request { url: url.to_owned(), source };
        let request = Request::get(uri)
            .header(http::header::ACCEPT, "text/plain")
            .body(Empty::new())
            .map_err(|error| failed(error.into()))?;
        let response = self.client.request(request).await.map_err(|error| failed(error.into()))?;
        if response.status() != StatusCode::OK {
            return Err(ScrapeError::Status { url: url.to_owned(), status: response.status() });
        }
        let body = Limited::new(response.into_body(), MAX_PAGE_BYTES).collect().await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ScrapeError::TooLarge { url: url.to_owned() }
            } else {
                failed(error)
            }
        })?;
        String::from_utf8(body.to_bytes().into())
            .map_err(|_| ScrapeError::Utf8 { url: url.to_owned() })
    }
}

//! Scrapes of a real HTTP server on the loopback.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pod_metrics::{MAX_PAGE_BYTES, PageError, ScrapeError, Scraper};
use tokio::net::TcpListener;

/// Serves fixed answers, one per path, and counts its connections.
async fn serve() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("a port"));
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer)),
            );
        }
    });
    (url, connections)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let page = |bytes: Vec<u8>| Response::new(Full::new(Bytes::from(bytes)));
    Ok(match request.uri().path() {
        "/metrics" => page(b"vllm:num_requests_waiting 3\n".to_vec()),
        "/full" => page(vec![b'\n'; MAX_PAGE_BYTES]),
        "/oversized" => page(vec![b'\n'; MAX_PAGE_BYTES + 1]),
        "/binary" => page(vec![0xff]),
        "/malformed" => page(b"vllm:num_requests_waiting{".to_vec()),
        "/silent" => std::future::pending().await,
        _ => {
            let mut response = page(b"vllm:num_requests_waiting 0\n".to_vec());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    })
}

const AMPLE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_page_is_fetched_and_the_connection_kept() {
    let (url, connections) = serve().await;
    let scraper = Scraper::new(AMPLE);
    for _ in 0..3 {
        let load = scraper.scrape(&format!("{url}/metrics")).await.unwrap();
        assert_eq!(load.waiting, Some(3));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_error_answer_is_not_a_load() {
    let (url, _) = serve().await;
    let error = Scraper::new(AMPLE).scrape(&format!("{url}/error")).await.unwrap_err();
    assert!(matches!(error, ScrapeError::Status { status, .. } if status.as_u16() == 500));
}

#[tokio::test]
async fn an_engine_that_does_not_answer_times_out() {
    let (url, _) = serve().await;
    let scraper = Scraper::new(Duration::from_millis(200));
    let error = scraper.scrape(&format!("{url}/silent")).await.unwrap_err();
    assert!(matches!(error, ScrapeError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn the_body_is_bounded() {
    let (url, _) = serve().await;
    let scraper = Scraper::new(AMPLE);
    let load = scraper.scrape(&format!("{url}/full")).await.unwrap();
    assert_eq!(load.waiting, None);
    let error = scraper.scrape(&format!("{url}/oversized")).await.unwrap_err();
    assert!(matches!(error, ScrapeError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn a_page_that_is_none_says_why() {
    let (url, _) = serve().await;
    let scraper = Scraper::new(AMPLE);
    let error = scraper.scrape(&format!("{url}/binary")).await.unwrap_err();
    assert!(matches!(error, ScrapeError::Utf8 { .. }), "{error:?}");
    let error = scraper.scrape(&format!("{url}/malformed")).await.unwrap_err();
    let ScrapeError::Page { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source, PageError::Line { line: 1, part: "label" });
}

#[tokio::test]
async fn nobody_there_is_a_request_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/metrics", listener.local_addr().expect("a port"));
    drop(listener);
    let error = Scraper::new(AMPLE).scrape(&url).await.unwrap_err();
    assert!(matches!(error, ScrapeError::Request { .. }), "{error:?}");
}

#[tokio::test]
async fn only_plain_http_is_spoken() {
    for url in ["https://127.0.0.1/metrics", "127.0.0.1:8000", "/metrics", "http//x", ""] {
        let error = Scraper::new(AMPLE).scrape(url).await.unwrap_err();
        assert!(matches!(error, ScrapeError::Url { .. }), "{url}: {error:?}");
    }
}

use testbed::{Stand, StandOptions};
#[tokio::test(flavor = "multi_thread")]
async fn scratch() {
    let mut stand = Stand::prepare(StandOptions::default()).await.unwrap();
    stand.render().unwrap();
    for name in ["intake", "picker"] {
        std::fs::write(stand.rendered().join(format!("ecds/{name}.yaml")), "{}").unwrap();
    }
    stand.start_envoy(&[]).await.unwrap();
    println!("GW {} ENG {}", stand.gateway, stand.engines[0].http);
    println!("ADMIN {}", stand.envoy_admin);
    tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    println!("{}", stand.envoy.as_ref().unwrap().tail());
}

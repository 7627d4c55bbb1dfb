//! What intake and picker are told of the features that only some plugins read. What nobody needs is
//! not there.

use routing::SessionSource;
use serde_json::{Value, json};

use crate::config::Config;

/// Adds intake's part: what built-in plugins read by their parameters, and what modules read by
/// `routing.features`.
pub(super) fn intake(config: &Config, intake: &mut Value) {
    let (features, needs) = (&config.routing.features, &config.routing.needs);
    let lists = [
        ("headers", &features.headers, &needs.headers),
        ("labels", &features.labels, &needs.labels),
        ("attributes", &features.attributes, &needs.attributes),
    ];
    for (key, own, more) in lists {
        let mut names: Vec<&String> = own.iter().chain(more).collect();
        names.sort_unstable();
        names.dedup();
        if !names.is_empty() {
            intake[key] = json!(names);
        }
    }
    // Who configures objectives has somebody who reads them.
    let has_objectives = !config.objectives.is_empty();
    if features.request_control || needs.request_control || has_objectives {
        intake["requestControl"] = json!(true);
    }
    if has_objectives {
        let objective = |objective: &crate::config::Objective| {
            let mut value = json!({"name": objective.name, "priority": objective.priority});
            if let Some(pool) = &objective.pool {
                value["pool"] = json!(pool);
            }
            value
        };
        intake["objectives"] = config.objectives.iter().map(objective).collect();
    }
    if (features.rates || needs.rates) && config.meter.is_some() {
        intake["rates"] = json!(true);
    }
    both(config, intake);
}

/// Adds the picker's part.
pub(super) fn picker(config: &Config, picker: &mut Value) {
    both(config, picker);
}

fn both(config: &Config, filter: &mut Value) {
    // A plugin's parameters say more than what modules were said to read.
    let of_plugins = config.routing.needs.session.as_ref().map(session);
    if let Some(session) = of_plugins.or_else(|| config.routing.features.session.clone()) {
        filter["session"] = session;
    }
    if config.routing.refuses {
        filter["refuse"] = json!(true);
    }
}

fn session(source: &SessionSource) -> Value {
    match source {
        SessionSource::EncodedEndpoint { header } => {
            json!({"strategy": "encoded_endpoint_header", "header": header})
        }
        SessionSource::SessionId { headers, ttl_seconds } => json!({
            "strategy": "session_id", "headers": headers, "ttlMs": (ttl_seconds * 1e3) as u64,
        }),
    }
}

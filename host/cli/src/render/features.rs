//! What intake and picker are told of the features that only some plugins read. What nobody needs is
//! not there.

use routing::SessionSource;
use serde_json::{Value, json};

use crate::config::Config;

/// Adds intake's part.
pub(super) fn intake(config: &Config, intake: &mut Value) {
    let needs = &config.routing.needs;
    let lists =
        [("headers", &needs.headers), ("labels", &needs.labels), ("attributes", &needs.attributes)];
    for (key, names) in lists {
        if !names.is_empty() {
            intake[key] = json!(names);
        }
    }
    // Who configures objectives has somebody who reads them.
    let has_objectives = !config.objectives.is_empty();
    if needs.request_control || has_objectives {
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
    if needs.rates && config.meter.is_some() {
        intake["rates"] = json!(true);
    }
    both(config, intake);
}

/// Adds the picker's part.
pub(super) fn picker(config: &Config, picker: &mut Value) {
    both(config, picker);
}

fn both(config: &Config, filter: &mut Value) {
    if let Some(source) = &config.routing.needs.session {
        filter["session"] = session(source);
    }
    if config.routing.refuses {
        filter["refuse"] = json!(true);
    }
    if config.routing.is_conformance {
        filter["conformance"] = json!(true);
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

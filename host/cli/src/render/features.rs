//! What intake and picker are told of the features that only some plugins read. What nobody needs is
//! not there.

use serde_json::{Value, json};

use crate::config::Config;

/// Adds intake's part.
pub(super) fn intake(config: &Config, intake: &mut Value) {
    let features = &config.routing.features;
    let lists = [
        ("headers", &features.headers),
        ("labels", &features.labels),
        ("attributes", &features.attributes),
    ];
    for (key, names) in lists {
        if !names.is_empty() {
            intake[key] = json!(names);
        }
    }
    // Who configures objectives has somebody who reads them.
    if features.request_control || !config.objectives.is_empty() {
        intake["requestControl"] = json!(true);
    }
    if !config.objectives.is_empty() {
        let objective = |objective: &crate::config::Objective| {
            let mut value = json!({"name": objective.name, "priority": objective.priority});
            if let Some(pool) = &objective.pool {
                value["pool"] = json!(pool);
            }
            value
        };
        intake["objectives"] = config.objectives.iter().map(objective).collect();
    }
    if features.rates && config.meter.is_some() {
        intake["rates"] = json!(true);
    }
    both(config, intake);
}

/// Adds the picker's part.
pub(super) fn picker(config: &Config, picker: &mut Value) {
    both(config, picker);
}

fn both(config: &Config, filter: &mut Value) {
    if let Some(session) = &config.routing.features.session {
        filter["session"] = session.clone();
    }
    if config.routing.refuses {
        filter["refuse"] = json!(true);
    }
}

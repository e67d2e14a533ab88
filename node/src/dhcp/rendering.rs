//! Options whose values are templates, rendered away from the state's lock, so that a slow
//! template delays only the clients of its subnet.

use std::collections::BTreeMap;

use muster_api::options::is_template;
use muster_api::template::{self, Job, RenderContext};
use muster_raft::Cluster;
use muster_storage::State;

use super::request::Request;

/// Texts with what they became.
pub type Rendered = BTreeMap<String, Result<String, String>>;

/// Whether the client has options to render on a subnet of its link.
pub fn needed(state: &State, request: &Request) -> bool {
    templates(state, request).next().is_some()
}

/// Renders the options of the client's link for the client.
pub async fn render(cluster: &Cluster, request: &Request) -> Rendered {
    let (node, nodes) = template::nodes(cluster);
    let jobs: Vec<(String, Job)> = cluster.read(|state| {
        let context = RenderContext {
            machine: request
                .client
                .mac
                .and_then(|mac| state.machine_with_mac(mac)),
            node,
            nodes,
            // It is for what the machine fetches: packets are for all to see.
            token: None,
        };
        templates(state, request)
            .map(|text| (text.to_owned(), Job::text(state, &context, text)))
            .collect()
    });
    let rendered = template::on_pool(move || {
        let (texts, jobs): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        let rendered = template::run_all(jobs).into_iter();
        let rendered = rendered.map(|text| text.map_err(|problem| problem.to_string()));
        texts.into_iter().zip(rendered).collect()
    });
    rendered.await.unwrap_or_default()
}

fn templates<'a>(state: &'a State, request: &'a Request) -> impl Iterator<Item = &'a str> {
    state
        .subnets_of_link(&request.client.link)
        .flat_map(move |subnet| state.options_of(&request.client, subnet))
        .map(|(_, value)| value)
        .filter(|value| is_template(value))
}

//! What a machine would be given: rendered templates, and which rule decides its boot.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use muster_storage::model::{ClientKey, HIDDEN, Mac, Object, ObjectKind, Template};
use muster_storage::state::{BootClient, BootTarget, Kept};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::extract::{Json, Key, Params};
use crate::input::{self, Declared};
use crate::problem::Problem;
use crate::template::trial::Overlay;
use crate::template::{self, Job, NodeView, RenderContext};
use crate::{App, Shared, machine_token, view};

pub fn router() -> Router<Shared> {
    Router::new().route("/explain", get(explain))
}

pub fn machine_router() -> Router<Shared> {
    Router::new()
        .route("/{key}/render", get(render).post(render_draft))
        .route("/{key}/params", get(params))
}

#[derive(Deserialize)]
struct Which {
    template: String,
}

/// The text that a machine would get from this node.
async fn render(
    State(app): State<Shared>,
    Key(key): Key,
    Params(Which { template }): Params<Which>,
) -> Result<Response, Problem> {
    let (node, nodes) = template::nodes(&app.cluster);
    let job = app.cluster.read(|state| {
        let machine = state
            .machine(&key)
            .ok_or_else(|| Problem::not_found("machine", &key))?;
        if state.template(&template).is_none() {
            return Err(Problem::not_found("template", &template));
        }
        let context = RenderContext {
            machine: Some(machine),
            node,
            nodes,
            token: Some(machine_token::HIDDEN.to_owned()),
        };
        Ok(Job::named(state, &context, &template))
    })?;
    rendered(&app, job).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    contents: String,
}

/// The text that a machine would get if the template had other contents.
async fn render_draft(
    State(app): State<Shared>,
    Key(key): Key,
    Params(Which { template }): Params<Which>,
    Json(body): Json,
) -> Result<Response, Problem> {
    let Contents { contents } = input::parse(body)?;
    let (node, nodes) = template::nodes(&app.cluster);
    let name = template.clone();
    let draft = [Object::Template(Template { name, contents })];
    let check = app.cluster.read(|state| input::check(state, &draft));
    check(&draft)?;
    let job = app.cluster.read(|state| {
        let machine = state
            .machine(&key)
            .ok_or_else(|| Problem::not_found("machine", &key))?;
        let overlay = Overlay::new(state, &draft, &[]);
        Ok::<_, Problem>(overlay.template(machine, node, nodes, &template))
    })?;
    rendered(&app, job).await
}

/// As the machine gets it, with its secrets.
async fn rendered(app: &App, job: Job) -> Result<Response, Problem> {
    let job = match job.has_secrets() {
        true => job.with_secrets(app.cluster.keyring()?),
        false => job,
    };
    let text = run(job).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

/// The params of a machine, each with who says so.
async fn params(State(app): State<Shared>, Key(key): Key) -> Result<axum::Json<Value>, Problem> {
    let schemas = app.cluster.read(Declared::of).schemas();
    app.cluster.read(|state| {
        let machine = state
            .machine(&key)
            .ok_or_else(|| Problem::not_found("machine", &key))?;
        let items: Vec<Value> = state
            .params(Some(machine))
            .into_iter()
            .map(|(name, found)| {
                let from = match found.from.kind {
                    ObjectKind::Param => "default".to_owned(),
                    _ => found.from.to_string(),
                };
                let (value, problem) = match found.value {
                    Kept::Plain(_) if state.is_secure(name) => (HIDDEN.into(), None),
                    Kept::Plain(value) => (value.clone(), schemas.check(name, value).err()),
                    Kept::Sealed(_) => (HIDDEN.into(), None),
                };
                let problem = problem.map(|(place, message)| format!("{place} {message}"));
                json!({"name": name, "value": value, "from": from, "problem": problem})
            })
            .collect();
        let revision = state.revision().0;
        Ok(axum::Json(
            json!({"items": items, "next": null, "revision": revision}),
        ))
    })
}

async fn run(job: Job) -> Result<String, Problem> {
    let rendered = template::on_pool(|| job.run()).await;
    rendered.and_then(|text| text).map_err(Problem::from)
}

#[derive(Deserialize)]
struct Who {
    mac: Mac,
}

/// What a machine would be served now, by which rule, and why.
async fn explain(
    State(app): State<Shared>,
    Params(Who { mac }): Params<Who>,
) -> Result<axum::Json<Value>, Problem> {
    let (node, nodes) = template::nodes(&app.cluster);
    let (mut answer, arguments) = app
        .cluster
        .read(|state| explain_in(state, mac, &node, &nodes));
    if let Some(job) = arguments {
        let (name, value) = match run(job).await {
            Ok(text) => ("kernel_args", text),
            Err(problem) => ("kernel_args_problem", problem.detail),
        };
        answer.insert(name.to_owned(), value.into());
    }
    Ok(axum::Json(Value::Object(answer)))
}

fn explain_in(
    state: &muster_storage::State,
    mac: Mac,
    node: &NodeView,
    nodes: &[NodeView],
) -> (Map<String, Value>, Option<Job>) {
    let plan = state.boot_plan(&BootClient { mac });
    let mut answer = Map::new();
    let mut add = |name: &str, value: Value| answer.insert(name.to_owned(), value);
    add("mac", mac.to_string().into());
    add(
        "machine",
        plan.machine.map(|machine| machine.name.clone()).into(),
    );
    add("rule", plan.rule.into());
    let uuid = plan.machine.map(|machine| machine.uuid);
    if let Some(install) = uuid.and_then(|uuid| state.install(uuid)) {
        add(view::INSTALL, view::install(state, install));
    }
    if let Some(lock) = uuid.and_then(|uuid| state.lock(uuid)) {
        add(view::LOCKED, view::lock(state, lock));
    }
    let key = ClientKey::Mac(mac);
    let lease = state.leases_of(&key).max_by_key(|it| it.object.bound_at);
    let subnet = lease.and_then(|lease| state.subnet(&lease.object.subnet));
    let loaders: Map<String, Value> = state
        .chosen_loaders(mac, subnet)
        .into_iter()
        .map(|(platform, (by, loader))| {
            let chosen = json!({"loader": loader, "by": by});
            (platform.to_string(), chosen)
        })
        .collect();
    add("loaders", loaders.into());
    add("local_boot", json!(state.local_boot(plan.machine)));
    let mut arguments = None;
    let fenced = matches!(plan.target, BootTarget::Install { .. });
    match plan.target {
        BootTarget::Local => {
            add("target", "local".into());
        }
        BootTarget::Hold { reason } => {
            add("target", "hold".into());
            add("reason", reason.into());
        }
        BootTarget::Bootenv(bootenv) | BootTarget::Install { bootenv, .. } => {
            let artifact = |path: &String| {
                let found = state.artifact(path);
                json!({"path": path, "sha256": found.map(|a| a.sha256.to_string()), "size": found.map(|a| a.size)})
            };
            let context = RenderContext {
                machine: plan.machine,
                node: node.clone(),
                nodes: nodes.to_vec(),
                token: Some(machine_token::HIDDEN.to_owned()),
            };
            let target = if fenced { "install" } else { "bootenv" };
            add("target", target.into());
            add("bootenv", bootenv.name.clone().into());
            add("kernel", bootenv.kernel.as_ref().map(artifact).into());
            add("initrds", bootenv.initrds.iter().map(artifact).collect());
            add("files", json!(bootenv.files));
            arguments = Some(Job::text(state, &context, &bootenv.kernel_args));
        }
    }
    (answer, arguments)
}

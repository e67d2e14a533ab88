//! Where the API listens, from before the node belongs to a cluster until it ends.

use std::path::{Path, PathBuf};

use muster_api::rest;
use muster_api::server::{self, Serving, SocketFile};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::settings::Settings;
use super::{Error, early, system};

/// The listeners of the API, up from the first moment.
pub(super) struct Api {
    pub serving: Serving,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    _socket: SocketFile,
}

impl Api {
    pub async fn listen(data_dir: &Path, settings: &Settings) -> Result<Self, Error> {
        let why = "this node does not belong to a cluster yet, or is still starting";
        let tls = early::tls(&settings.node_name, settings.advertise)?;
        let serving = Serving::new(rest::waiting(why), tls);
        let stop = CancellationToken::new();
        let path: PathBuf = data_dir.join("muster.sock");
        let unix = server::listen_unix(&path)
            .map_err(system(format!("listening on {}", path.display())))?;
        let socket = SocketFile(path);
        let port = settings.api_port;
        let tcp = server::listen_tcp(port)
            .await
            .map_err(system(format!("listening on TCP port {port} (--api-port)")))?;
        let tasks = vec![
            tokio::spawn(server::serve_unix(unix, serving.clone(), stop.clone())),
            tokio::spawn(server::serve_tls(tcp, serving.clone(), stop.clone())),
        ];
        Ok(Self {
            serving,
            stop,
            tasks,
            _socket: socket,
        })
    }

    pub async fn finish(self) {
        self.stop.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

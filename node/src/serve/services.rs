//! The services of a node that belongs to a cluster.

use muster_raft::Cluster;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::settings::Settings;
use crate::boot::Recorder;
use crate::config::ServeOptions;
use crate::dhcp::{self, Interfaces};
use crate::minority::Minority;
use crate::reconcile;
use crate::{boot, journal, ra, tftp, upkeep};

/// Services that run.
pub struct Services(JoinSet<Result<(), Error>>);

impl Services {
    /// Waits until a service fails, which none should.
    pub async fn failure(&mut self) -> Error {
        loop {
            match self.0.join_next().await {
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return Error::Service(format!("a service failed: {error}")),
                Some(Ok(Ok(()))) => {}
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Waits until all have ended, after they were told to stop.
    pub async fn finish(&mut self) {
        while let Some(ended) = self.0.join_next().await {
            if let Ok(Err(error)) = ended {
                tracing::warn!(%error, "a service ended badly");
            }
        }
    }
}

/// The DHCP service, which does not serve yet.
pub fn dhcp(
    cluster: &Cluster,
    options: &ServeOptions,
    settings: &Settings,
    recorder: Recorder,
) -> Result<dhcp::Server, Error> {
    let dhcp_options = dhcp::Options {
        interfaces: interfaces(&options.dhcp_interfaces)?,
        dhcp_port: options.dhcp_port,
        proxy_port: options.proxy_dhcp_port,
        boot_port: options.boot_port,
        tftp_port: options.tftp_port,
        advertise: settings.advertise,
        recorder,
    };
    Ok(dhcp::Server::new(cluster.clone(), dhcp_options))
}

/// Starts all services; each ends when `stop` is cancelled.
pub fn start(
    cluster: &Cluster,
    options: &ServeOptions,
    settings: &Settings,
    dhcp: dhcp::Server,
    minority: Minority,
    recorder: Recorder,
    stop: &CancellationToken,
) -> Services {
    let failed = |error: &dyn std::error::Error| Error::Service(muster_api::client::chain(error));
    let mut services = JoinSet::new();

    let boot_options = boot::Options {
        boot_port: options.boot_port,
        advertise: settings.advertise,
        loader_dir: options.loader_dir.clone(),
        recorder: recorder.clone(),
    };
    let (own, token) = (cluster.clone(), stop.clone());
    services.spawn(async move {
        boot::serve(own, boot_options, token)
            .await
            .map_err(|error| failed(&error))
    });

    let tftp_options = tftp::Options {
        tftp_port: options.tftp_port,
        boot_port: options.boot_port,
        advertise: settings.advertise,
        loader_dir: options.loader_dir.clone(),
        recorder,
    };
    let (own, token) = (cluster.clone(), stop.clone());
    services.spawn(async move {
        tftp::serve(own, tftp_options, token)
            .await
            .map_err(|error| failed(&error))
    });

    let (own, token) = (cluster.clone(), stop.clone());
    let interfaces = dhcp.interfaces().clone();
    services.spawn(async move {
        ra::serve(own, interfaces, token).await;
        Ok(())
    });
    let token = stop.clone();
    services.spawn(async move { dhcp.serve(token).await.map_err(|error| failed(&error)) });
    let (own, token) = (cluster.clone(), stop.clone());
    services.spawn(async move {
        token.run_until_cancelled(journal::keep(own)).await;
        Ok(())
    });
    let (own, token) = (cluster.clone(), stop.clone());
    services.spawn(async move {
        token.run_until_cancelled(minority.watch(own)).await;
        Ok(())
    });
    let (own, token) = (cluster.clone(), stop.clone());
    services.spawn(async move {
        token.run_until_cancelled(upkeep::run(own)).await;
        Ok(())
    });
    let (own, token) = (cluster.clone(), stop.clone());
    services.spawn(async move {
        reconcile::run(own, token).await;
        Ok(())
    });
    Services(services)
}

/// Reads the names of interfaces.
pub fn interfaces(text: &str) -> Result<Interfaces, Error> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    match text.trim() {
        "all" => Ok(Interfaces::All),
        "none" => Ok(Interfaces::None),
        _ if names.iter().all(|name| !name.is_empty()) => Ok(Interfaces::Named(names)),
        _ => Err(Error::Usage(
            "--dhcp-interfaces: write names by commas, `all` or `none`".to_owned(),
        )),
    }
}

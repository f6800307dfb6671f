//! Modules on their way: from an operator to a node, and from node to node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lockstep_client::cause::why;
use lockstep_core::ids::{ModuleId, NodeId};
use lockstep_core::limits::{GRPC_MESSAGE_BYTES_MAX, MODULE_BYTES_MAX};
use tonic::{Request, Status};

use crate::guest::check::Report;
use crate::modules::{Fetch, ModuleStore, Piece, lock};
use crate::router::Router;
use crate::rpc::peer_link;
use crate::rpc::proto::client as wire;
use crate::rpc::proto::client::lockstep_client::LockstepClient;

/// How long a node has to answer with a piece.
const PIECE_MAX: Duration = Duration::from_secs(10);

/// Takes a piece of a module; `Err` says why it, or the whole module, is refused.
pub(super) async fn stage(
    store: &Arc<ModuleStore>,
    router: &Router,
    request: wire::StageModuleRequest,
) -> Result<wire::StageModuleResponse, String> {
    let wire::StageModuleRequest { module, total, offset, piece } = request;
    let id = id(&module)?;
    let arrived = store.arrives(&Piece { id, total, offset, bytes: &piece })?;
    let Some(bytes) = arrived else { return Ok(wire::StageModuleResponse { staged: None }) };
    let report = take(store, router, id, bytes).await?;
    let compiled_ms = report.compiled_in.map_or(0, |took| took.as_millis() as u64);
    let info = report.info;
    let staged = Some(wire::StagedModule {
        name: info.name,
        version: info.version,
        snapshot_format: info.snapshot_format,
        oldest_readable_format: info.oldest_readable_format,
        compiled_ms,
    });
    Ok(wire::StageModuleResponse { staged })
}

/// A piece of a module that this node keeps.
pub(super) async fn read(
    store: &Arc<ModuleStore>,
    request: wire::ReadModuleRequest,
) -> Result<wire::ReadModuleResponse, String> {
    let (id, store) = (id(&request.module)?, Arc::clone(store));
    let reading = tokio::task::spawn_blocking(move || store.read(id, request.offset));
    Ok(match reading.await {
        Ok(Ok((piece, total))) => wire::ReadModuleResponse { piece: piece.into(), total },
        Ok(Err(_)) | Err(_) => wire::ReadModuleResponse { piece: Bytes::new(), total: 0 },
    })
}

/// What became of asking for a module.
#[derive(Clone, Copy, Default)]
struct Asked {
    under_way: bool,
    /// How often all nodes were asked in vain.
    in_vain: u32,
}

/// Modules of which it is remembered how often they were asked for.
const ASKED_MAX: usize = 64;

/// Asks the other nodes for modules, one after the other; a module is asked for once at a time.
pub(crate) fn fetch(store: &Arc<ModuleStore>, router: &Router) -> Fetch {
    let others = router.peers().iter().filter(|(node, _)| **node != router.node());
    let others: BTreeMap<NodeId, String> = others.map(|(node, at)| (*node, at.clone())).collect();
    let others = Arc::new(others);
    let all: Arc<Mutex<BTreeMap<ModuleId, Asked>>> = Arc::default();
    let (store, router) = (Arc::downgrade(store), router.clone());
    let runtime = tokio::runtime::Handle::current();
    Box::new(move |id| {
        let mut asked = lock(&all);
        if asked.len() > ASKED_MAX {
            asked.retain(|_, asked| asked.under_way);
        }
        let asked = asked.entry(id).or_default();
        if !std::mem::replace(&mut asked.under_way, true) {
            let (others, all) = (Arc::clone(&others), Arc::clone(&all));
            let (store, router) = (store.clone(), router.clone());
            runtime.spawn(async move {
                let in_vain = match store.upgrade() {
                    Some(store) => !ask(&others, &store, &router, id).await,
                    None => true,
                };
                if let Some(asked) = lock(&all).get_mut(&id) {
                    *asked =
                        Asked { under_way: false, in_vain: asked.in_vain + u32::from(in_vain) };
                }
            });
        }
        asked.in_vain
    })
}

/// Asks one node after the other until one has the module, and this one has taken it; returns
/// whether it has.
async fn ask(
    others: &BTreeMap<NodeId, String>,
    store: &Arc<ModuleStore>,
    router: &Router,
    id: ModuleId,
) -> bool {
    for (node, address) in others {
        let got = match fetch_from(address, id).await {
            Ok(None) => continue,
            Ok(Some(bytes)) => take(store, router, id, bytes).await,
            Err(why) => Err(why),
        };
        match got {
            Ok(_here) => return true,
            Err(why) => tracing::warn!(module = %id, %node, why, "the module does not come"),
        }
    }
    false
}

/// The module, from the node at this address; `None` if that does not have it.
async fn fetch_from(address: &str, id: ModuleId) -> Result<Option<Vec<u8>>, String> {
    let endpoint = peer_link::endpoint(address).map_err(|status| status.message().to_owned())?;
    let channel =
        endpoint.connect().await.map_err(|error| why(&Status::from_error(error.into())))?;
    let mut client = LockstepClient::new(channel).max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX);
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let (module, offset) = (id_bytes(id), bytes.len() as u64);
        let mut request = Request::new(wire::ReadModuleRequest { module, offset });
        request.set_timeout(PIECE_MAX);
        let answer = tokio::time::timeout(PIECE_MAX, client.read_module(request)).await;
        let answer = answer.map_err(|_elapsed| "no answer in time".to_owned())?;
        let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
        let wire::ReadModuleResponse { piece, total } = answer;
        if total == 0 {
            return Ok(None);
        }
        if piece.is_empty() || total > MODULE_BYTES_MAX as u64 {
            return Err(format!("it has {offset} of {total} bytes"));
        }
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 >= total {
            return Ok(Some(bytes));
        }
    }
}

async fn take(
    store: &Arc<ModuleStore>,
    router: &Router,
    id: ModuleId,
    bytes: Vec<u8>,
) -> Result<Report, String> {
    let (store, named) = (Arc::clone(store), named(router));
    let taking = tokio::task::spawn_blocking(move || store.take(id, &bytes, &named));
    taking.await.unwrap_or_else(|_panicked| Err("this node failed to check it".to_owned()))
}

/// The modules that the groups of this node, or their snapshots, name.
fn named(router: &Router) -> BTreeSet<ModuleId> {
    let mut named = BTreeSet::new();
    for group in router.groups() {
        let status = group.report().status;
        named.insert(status.module);
        named.extend(status.previous_module);
        named.extend(status.snapshots.iter().map(|desc| desc.module));
    }
    named
}

pub(super) fn id_bytes(id: ModuleId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

pub(super) fn id(bytes: &[u8]) -> Result<ModuleId, String> {
    let id = bytes.try_into().map(ModuleId);
    id.map_err(|_| format!("a module's id has 32 bytes, not {}", bytes.len()))
}

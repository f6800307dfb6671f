//! What a node grants its clients, and at which addresses they find the nodes.

use std::collections::BTreeMap;

use lockstep_core::ids::NodeId;

use crate::config::address::check_address;
use crate::config::{node_id, parse_size};

/// Memory that all clients' calls may hold together, bytes: the default, and the minimum.
pub(crate) const MEMORY_BYTES: u64 = 256 << 20;
pub(crate) const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// The most connections that may be configured.
const CONNECTIONS_MAX: u64 = 1 << 20;

/// What a node grants its clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientSettings {
    /// Connections that clients may hold; `None` = the default, or fewer if descriptors are short.
    pub connections: Option<usize>,
    /// Memory that all their calls may hold together, bytes.
    pub memory_bytes: u64,
    /// Addresses for clients, of nodes that they cannot reach at the address in `[nodes]`.
    pub advertise: BTreeMap<NodeId, String>,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self { connections: None, memory_bytes: MEMORY_BYTES, advertise: BTreeMap::new() }
    }
}

/// Checks the keys `connections` and `client-memory`, and the table `[advertise]`.
pub(super) fn settings(
    connections: Option<u64>,
    memory: Option<&str>,
    advertise: &BTreeMap<String, String>,
    nodes: &BTreeMap<NodeId, String>,
) -> Result<ClientSettings, String> {
    let connections = match connections {
        None => None,
        Some(count @ 1..=CONNECTIONS_MAX) => usize::try_from(count).ok(),
        Some(count) => {
            return Err(format!("connections: {count} is not within 1 to {CONNECTIONS_MAX}"));
        }
    };
    let configured = memory.map(|size| parse_size("client-memory", size)).transpose()?;
    let memory_bytes = configured.unwrap_or(MEMORY_BYTES);
    if memory_bytes < MEMORY_BYTES_MIN {
        return Err(format!(
            "client-memory: {memory_bytes} bytes is below the minimum of {MEMORY_BYTES_MIN}"
        ));
    }
    let mut told = BTreeMap::new();
    for (id, address) in advertise {
        let number = id.parse().map_err(|_| format!("[advertise]: {id:?} is not a node id"))?;
        let id = node_id(number)?;
        if !nodes.contains_key(&id) {
            return Err(format!("[advertise]: node {id} is not in [nodes]"));
        }
        check_address(&format!("[advertise] {id}"), address)?;
        told.insert(id, address.clone());
    }
    Ok(ClientSettings { connections, memory_bytes, advertise: told })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let nodes = BTreeMap::from([(NodeId(1), "a:1".to_owned())]);
        let check = |connections, memory, advertise: &[(&str, &str)], want: &str| {
            let advertise = advertise.iter().map(|(id, at)| ((*id).to_owned(), (*at).to_owned()));
            let read = settings(connections, memory, &advertise.collect(), &nodes);
            let said = read.err().unwrap_or_default();
            assert_eq!(want.is_empty(), said.is_empty(), "{said}");
            assert!(said.contains(want), "{said}");
        };
        check(None, None, &[], "");
        check(Some(1), Some("64MiB"), &[("1", "lb.example:7101")], "");
        check(Some(0), None, &[], "connections: 0 is not");
        check(None, Some("1MiB"), &[], "client-memory: 1048576 bytes is below the minimum");
        check(None, Some("much"), &[], "client-memory");
        check(None, None, &[("2", "lb:1")], "node 2 is not in [nodes]");
        check(None, None, &[("one", "lb:1")], "is not a node id");
        check(None, None, &[("1", "lb")], "[advertise] 1: \"lb\" is not host:port");
    }
}

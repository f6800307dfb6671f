//! Addresses in `node.toml`: whether they are valid, which of them are the same, and whether other
//! machines can reach the one that a node listens on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lockstep_core::ids::NodeId;

pub(super) fn check_address(what: &str, address: &str) -> Result<(), String> {
    let bad = || format!("{what}: {address:?} is not host:port, like 10.0.0.1:7101");
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(is_name),
    };
    match port.parse::<u16>() {
        Ok(port) if is_host && port != 0 => Ok(()),
        Ok(_) | Err(_) => Err(bad()),
    }
}

/// Where an address leads to, as far as its text tells. Two addresses of one place are the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// An IP address and a port.
    Numbers(IpAddr, u16),
    /// A host name in lower case, without the final dot of a fully qualified name, and a port.
    Name(String, u16),
}

impl Place {
    /// The place of an address that [`check_address`] accepted.
    pub(super) fn of(address: &str) -> Self {
        if let Ok(socket) = address.parse::<SocketAddr>() {
            return Self::Numbers(socket.ip().to_canonical(), socket.port());
        }
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let lower = host.to_ascii_lowercase();
        let host = lower.strip_suffix('.').unwrap_or(&lower);
        Self::Name(host.to_owned(), port.parse().unwrap_or(0))
    }
}

/// Explains why no other machine can reach a node that listens on `bound`, to which `listen`
/// resolved; `None` if others can, or need not. `peers` has what the other nodes' addresses resolve
/// to.
pub(crate) fn out_of_reach(
    listen: &str,
    bound: SocketAddr,
    peers: &BTreeMap<NodeId, Vec<SocketAddr>>,
) -> Option<String> {
    let elsewhere = |addresses: &Vec<SocketAddr>| {
        addresses.iter().find(|address| !address.ip().to_canonical().is_loopback()).copied()
    };
    let peer = peers.iter().find_map(|(node, found)| Some((*node, elsewhere(found)?)));
    let (node, there) = peer.filter(|_| bound.ip().to_canonical().is_loopback())?;
    let led = match listen.parse::<SocketAddr>() {
        Ok(_) => String::new(),
        Err(_) => format!(", to which {listen} resolves on this machine (see /etc/hosts)"),
    };
    Some(format!(
        "this node listens on {bound}{led}, and only this machine can reach that; node {node} is \
         at {there}: set `listen` to an address that the other nodes can reach, or to 0.0.0.0"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        let same = [
            ("[::1]:7101", "[0:0:0:0:0:0:0:1]:7101"),
            ("[::ffff:10.0.0.1]:7101", "10.0.0.1:7101"),
            ("[2001:DB8::1]:7101", "[2001:db8:0::1]:07101"),
            ("N1.example.org:7101", "n1.example.org.:7101"),
            ("n1:7101", "n1:07101"),
        ];
        for (one, other) in same {
            check_address("x", one).and_then(|()| check_address("x", other)).expect(one);
            assert_eq!(Place::of(one), Place::of(other));
        }
        for (one, other) in [("[::1]:7101", "[::1]:7102"), ("n1:7101", "n2:7101")] {
            assert_ne!(Place::of(one), Place::of(other));
        }
    }

    #[test]
    fn who_listens_where_nobody_comes_is_told() {
        let to = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let check = |listen: &str, bound: &str, there: &[&str], says: Option<&str>| {
            let peers = (2..).map(NodeId).zip(there.iter().map(|there| vec![to(there)])).collect();
            let told = out_of_reach(listen, to(bound), &peers);
            match says {
                None => assert_eq!(told, None, "{listen}"),
                Some(says) => {
                    let told = told.expect(listen);
                    assert!(told.contains(says) && told.contains("set `listen`"), "{told}");
                }
            }
        };
        let far = ["127.0.0.1:7102", "10.0.0.3:7101"];
        let debian = Some("on 127.0.1.1:7101, to which n1:7101 resolves on this machine");
        check("n1:7101", "127.0.1.1:7101", &far, debian);
        check("127.0.0.1:7101", "127.0.0.1:7101", &far, Some("node 3 is at 10.0.0.3:7101"));
        check("[::1]:7101", "[::1]:7101", &["[2001:db8::3]:7101"], Some("only this machine"));
        check("n1:7101", "10.0.0.1:7101", &far, None);
        check("0.0.0.0:7101", "0.0.0.0:7101", &far, None);
        check("n1:7101", "127.0.1.1:7101", &["127.0.0.1:7102", "[::1]:7103"], None);
        check("n1:7101", "127.0.1.1:7101", &[], None);
    }
}

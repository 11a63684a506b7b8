//! Dialling a tunnel over TCP and TLS (SPEC N2, FACTS of the transport: TCP first).
//!
//! The addresses of a Peer are tried best first, each with a head start before the next; the first that ends
//! in two hellos wins. Whatever answers, only the Id and the key that table E names are taken (SPEC I6).

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use p2p_common::addr::HostPort;
use p2p_common::{KeyHash, NodeId, Now};
use p2p_peer_core::{BudgetSpent, DialBudget, DialRule};
use p2p_runtime::tcp::{self, CongestionReport};
use p2p_runtime::tls::{ConnectError, Connector, Credentials, Expect};
use tokio::time::Instant;

use super::{LinkCounters, OpenTunnels, PeerStream, Tunnel, TunnelError};
use crate::published::Myself;

/// The next address is tried after this long without an answer: longer than a round trip around the world
/// would make the user wait, shorter would dial what is not needed.
const HEAD_START: Duration = Duration::from_millis(200);
/// For TCP and TLS to one address: two SYN retransmissions.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A tunnel for forwards of this side: dialled, or asked for and offered.
#[derive(Debug)]
pub(crate) struct DirectTunnel {
    /// The tunnel.
    pub(crate) tunnel: Box<Tunnel<PeerStream>>,
    /// The address that answered, or from where it was dialled.
    pub(crate) address: HostPort,
    /// How long the hellos took.
    pub(crate) rtt: Duration,
    /// When it was open.
    pub(crate) opened_at: Instant,
    /// What its TCP runs on.
    pub(crate) congestion: CongestionReport,
}

/// Why a Peer cannot be dialled: what happened at each address that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DialFailures(pub(crate) Vec<(HostPort, String)>);

impl fmt::Display for DialFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("it offers no address that may be dialled from here");
        }
        for (nth, (address, error)) in self.0.iter().enumerate() {
            let gap = if nth == 0 { "" } else { "; " };
            write!(f, "{gap}{address}: {error}")?;
        }
        Ok(())
    }
}

/// Why one address did not do.
#[derive(Debug, thiserror::Error)]
enum AddressError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

/// Dials tunnels as one node.
#[derive(Debug, Clone)]
pub(crate) struct DirectDialer {
    /// What is shown and trusted.
    pub(crate) credentials: Arc<Credentials>,
    /// Who dials.
    pub(crate) myself: Arc<Myself>,
    /// Where what is dialled is entered.
    pub(crate) open: OpenTunnels,
    /// What each host that other Peers name gets.
    pub(crate) budget: DialBudgets,
}

/// The budgets of all dialled hosts. Cheap to copy.
#[derive(Debug, Clone)]
pub(crate) struct DialBudgets(Arc<(Instant, Mutex<DialBudget>)>);

impl Default for DialBudgets {
    fn default() -> Self {
        DialBudgets(Arc::new((Instant::now(), Mutex::default())))
    }
}

impl DialBudgets {
    fn take(&self, ip: IpAddr) -> Result<(), BudgetSpent> {
        let (start, budget) = &*self.0;
        budget.lock().unwrap_or_else(PoisonError::into_inner).take(ip, Now(start.elapsed()))
    }

    fn give_back(&self, ip: IpAddr) {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner).give_back(ip);
    }
}

impl DirectDialer {
    /// Dials `id`, which shows `key_hash`, at the first of `addresses` that does. What a name among them resolves to
    /// must pass `rule` like an address would (SPEC P2); without one the operator gave the addresses.
    ///
    /// # Errors
    /// When none does, with what happened at each.
    pub(crate) async fn dial(
        &self,
        id: NodeId,
        key_hash: KeyHash,
        addresses: &[HostPort],
        rule: Option<&DialRule>,
        counters: &Arc<LinkCounters>,
    ) -> Result<DirectTunnel, DialFailures> {
        let connector =
            Connector::tunnel(Arc::clone(&self.credentials), Expect::Node { id, key_hash: Some(key_hash) });
        let mut waiting = addresses.iter();
        let mut running = FuturesUnordered::new();
        let mut failures = Vec::new();
        let mut next_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                Some(done) = running.next() => {
                    let (address, outcome): (&HostPort, Result<DirectTunnel, AddressError>) = done;
                    match outcome {
                        Ok(tunnel) => return Ok(tunnel),
                        Err(error) => failures.push((address.clone(), error.to_string())),
                    }
                    next_at = Instant::now();
                }
                () = tokio::time::sleep_until(next_at), if waiting.len() > 0 => {
                    let address = waiting.next().expect("there is one left");
                    next_at = Instant::now() + HEAD_START;
                    let dial = self.dial_address(&connector, id, address, rule, counters);
                    running.push(async move { (address, dial.await) });
                }
                else => return Err(DialFailures(failures)),
            }
        }
    }

    async fn dial_address(
        &self,
        connector: &Connector,
        id: NodeId,
        address: &HostPort,
        rule: Option<&DialRule>,
        counters: &Arc<LinkCounters>,
    ) -> Result<DirectTunnel, AddressError> {
        let allowed = |addr| match rule {
            Some(rule) => {
                rule.check(addr).map_err(|skip| skip.to_string())?;
                self.budget.take(addr.ip()).map_err(|spent| spent.to_string())
            }
            None => Ok(()),
        };
        let tcp = tcp::connect_where(address, DIAL_TIMEOUT, allowed).await.map_err(ConnectError::from)?;
        let found = rule.and(tcp.peer_addr().ok());
        let congestion = tcp::use_bbr(&tcp);
        let dialed = connector.connect_tunnel(address, tcp, DIAL_TIMEOUT).await?;
        let stream = self.open.enter(dialed.identity.key_hash, dialed.stream);
        let start = Instant::now();
        let tunnel = Tunnel::greet(
            stream,
            Arc::clone(counters),
            &self.myself.hello(Some(id)),
            &self.myself.expected(dialed.identity.node_id),
        )
        .await?;
        if let Some(found) = found {
            self.budget.give_back(found.ip());
        }
        Ok(DirectTunnel {
            tunnel: Box::new(tunnel),
            address: address.clone(),
            rtt: start.elapsed(),
            opened_at: Instant::now(),
            congestion,
        })
    }
}

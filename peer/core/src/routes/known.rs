//! [`KnownPeer`]: a Peer that is in the tables, how it is reached, and what it carries on.

use std::collections::BTreeSet;
use std::sync::Arc;

use p2p_common::addr::{HostPort, NetInfo};
use p2p_common::grants::Grants;
use p2p_common::push::PeerEntry;
use p2p_common::wire::link::TransitService;
use p2p_common::{NodeId, UnixMs};

use super::{RemoteWork, RouteLink};
use crate::connect::DialPlan;

/// How tunnels to a Peer come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// By dialling the addresses it told the Servers, under the [`DialRule`](crate::DialRule).
    Dial(DialPlan),
    /// By dialling what the operator gave for it: a mesh link was opened there. No rule applies, since it is the
    /// operator's word; a proxy in front may lead to somebody else, which the handshake notices.
    Configured(Vec<HostPort>),
    /// By asking it to dial: it opened the mesh link, and may be behind a NAT. See
    /// [`Agent::handle_tunnels_wanted`](crate::Agent::handle_tunnels_wanted).
    Ask,
}

/// A Peer in the tables, with what it takes to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPeer {
    /// What it says of itself, and the key its certificate must carry.
    pub entry: Arc<PeerEntry>,
    /// The Servers it is online at.
    pub servers: BTreeSet<NodeId>,
    /// When it was last told.
    pub synced_at: UnixMs,
    /// How tunnels to it come about.
    pub reach: Reach,
    /// It is here by a mesh link, which is open or was until less than the offline time ago.
    pub linked: bool,
    /// Forwards to it may be tried.
    pub connected: bool,
    /// The services it carries on, of Peers it is linked with.
    pub transit: Arc<[TransitService]>,
    /// The address people are shown.
    pub address: Option<HostPort>,
    /// How it is linked by tunnels.
    pub link: RouteLink,
    /// What it may do, as far as it is known here.
    pub grants: Arc<Grants>,
}

impl Reach {
    /// The address people are shown of a Peer that tells this network: the first that is dialled, else the first
    /// it names.
    pub(crate) fn address(&self, net: &NetInfo) -> Option<HostPort> {
        let dialled = match self {
            Reach::Dial(plan) => plan.addresses.first(),
            Reach::Configured(addresses) => addresses.first(),
            Reach::Ask => None,
        };
        dialled.or(net.candidates.first().map(|candidate| &candidate.addr)).cloned()
    }
}

impl KnownPeer {
    /// Whether new forwards go to it: the loss of all Servers says nothing about Peers with a mesh link.
    pub fn takes_work(&self, remote: RemoteWork) -> bool {
        self.connected && (self.linked || remote == RemoteWork::Taken)
    }
}

//! Reasons for silence.

/// Why nothing is sent. Counted by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No subnet has the client's link.
    UnknownSubnet,
    /// The subnet's mode is `off`.
    Off,
    /// This node may not name itself on the link yet.
    NoIdentifier,
    /// No address is free, or none is reserved where only reservations are served.
    NoAddress,
    /// The client chose another server.
    ForeignServer,
    /// No quorum: nothing new is promised.
    NoQuorum,
    /// Not caught up with the cluster since the start.
    NotCaughtUp,
    /// Nothing is known about the client, so nothing is said about its address.
    UnknownClient,
    /// The address is not the sender's to give back or to decline.
    NotHolder,
    /// A field that this message must have is missing (RFC 2131 table 5).
    Incomplete,
    /// Proxy mode answers boot clients only.
    NotForProxy,
    /// No message for servers of this kind.
    Unsupported,
    /// Another client has the address, or another address is the client's.
    Refused,
    /// A peer has answered.
    Answered,
    /// Only addresses that fall to peers are left: they come first.
    LeftToPeer,
    /// Every free address is on offer to another client.
    AllOffered,
    /// Too many packets wait already.
    Overload,
    /// It waited for too long to be looked at.
    Stale,
    /// The write that the answer needs was not committed.
    NotCommitted,
    /// Nor was it in the time that a client waits.
    CommitTimeout,
    /// The kernel did not take the reply.
    SendFailed,
}

impl Reason {
    /// Label of the counter.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownSubnet => "unknown_subnet",
            Self::Off => "subnet_off",
            Self::NoIdentifier => "no_identifier",
            Self::NoAddress => "no_address",
            Self::ForeignServer => "foreign_server",
            Self::NoQuorum => "no_quorum",
            Self::NotCaughtUp => "not_caught_up",
            Self::UnknownClient => "unknown_client",
            Self::NotHolder => "not_holder",
            Self::Incomplete => "incomplete",
            Self::NotForProxy => "not_for_proxy",
            Self::Unsupported => "unsupported",
            Self::Refused => "refused",
            Self::Answered => "answered_by_peer",
            Self::LeftToPeer => "left_to_peer",
            Self::AllOffered => "all_offered",
            Self::Overload => "overload",
            Self::Stale => "stale",
            Self::NotCommitted => "not_committed",
            Self::CommitTimeout => "commit_timeout",
            Self::SendFailed => "send_failed",
        }
    }

    /// The same for people, with what to do where there is something to do.
    pub fn explain(self) -> &'static str {
        match self {
            Self::UnknownSubnet => {
                "no subnet holds the client's link; make one, or look at its relay"
            }
            Self::Off => "the subnet's mode is `off`",
            Self::NoIdentifier => "this node has no address on the client's link",
            Self::NoAddress => {
                "no address is free for this client, or none is reserved for it where only reservations are served"
            }
            Self::ForeignServer => "the client chose a DHCP server that is no node of this cluster",
            Self::NoQuorum => "this node has no quorum: nothing new is promised",
            Self::NotCaughtUp => "this node has not caught up with the cluster yet",
            Self::UnknownClient => {
                "nothing is known about this client and its address: it has to discover anew"
            }
            Self::NotHolder => "the address is not this client's to give back or to decline",
            Self::Incomplete => "the message lacks a field that it must have (RFC 2131 table 5)",
            Self::NotForProxy => "the subnet's mode is `proxy`: only boot clients are answered",
            Self::Unsupported => "servers do not answer messages of this type",
            Self::Refused => "another client has the address, or another address is this client's",
            Self::Answered => "another node has answered",
            Self::LeftToPeer => "only addresses are free that other nodes give first",
            Self::AllOffered => "every free address is on offer to another client",
            Self::Overload => "too many packets were waiting",
            Self::Stale => {
                "the packet had waited for seconds when this node came to it; look at the node's load"
            }
            Self::NotCommitted => "the lease could not be committed",
            Self::CommitTimeout => "the lease was not committed in the time that a client waits",
            Self::SendFailed => "the reply could not be sent; look at the interface",
        }
    }

    /// Whether it says something about the client, and not only who of the nodes answers it.
    pub fn concerns_client(self) -> bool {
        !matches!(self, Self::Answered | Self::LeftToPeer)
    }
}

//! Reasons for silence.

/// Why nothing is sent. Counted by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        }
    }
}

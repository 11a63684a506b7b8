//! Which of a Server's addresses is dialled: the picked one as long as it works, else the next (SPEC T4).

use p2p_common::addr::HostPort;

/// The addresses of one Server and the one in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picker {
    /// Best first; never empty, as table C has none without an address.
    addresses: Vec<HostPort>,
    picked: usize,
}

impl Picker {
    /// Begins with the first; `None` without any.
    pub fn new(addresses: Vec<HostPort>) -> Option<Self> {
        (!addresses.is_empty()).then_some(Picker { addresses, picked: 0 })
    }

    /// The one to dial.
    pub fn pick(&self) -> &HostPort {
        &self.addresses[self.picked]
    }

    /// `address` did not work: moves on, unless another way out has moved on already.
    pub fn failed(&mut self, address: &HostPort) {
        if self.pick() == address {
            self.picked = (self.picked + 1) % self.addresses.len();
        }
    }

    /// Replaces the addresses. The picked one stays picked if it is among them; else the first is.
    pub fn update(&mut self, addresses: Vec<HostPort>) {
        if addresses.is_empty() {
            return;
        }
        let stays = addresses.iter().position(|address| address == self.pick());
        (self.picked, self.addresses) = (stays.unwrap_or(0), addresses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> HostPort {
        HostPort::new("server.invalid", port).unwrap()
    }

    #[test]
    fn it_moves_on_when_the_picked_one_fails_and_round() {
        let mut picker = Picker::new(vec![address(1), address(2)]).unwrap();
        assert_eq!(picker.pick(), &address(1));
        picker.failed(&address(1));
        assert_eq!(picker.pick(), &address(2));
        // Somebody else dialled the first one at the same time.
        picker.failed(&address(1));
        assert_eq!(picker.pick(), &address(2));
        picker.failed(&address(2));
        assert_eq!(picker.pick(), &address(1));
        assert_eq!(Picker::new(Vec::new()), None);
    }

    #[test]
    fn an_update_keeps_what_works() {
        let mut picker = Picker::new(vec![address(1), address(2)]).unwrap();
        picker.failed(&address(1));
        picker.update(vec![address(3), address(4), address(2)]);
        assert_eq!(picker.pick(), &address(2));
        picker.update(vec![address(5), address(6)]);
        assert_eq!(picker.pick(), &address(5));
        picker.update(Vec::new());
        assert_eq!(picker.pick(), &address(5));
    }
}

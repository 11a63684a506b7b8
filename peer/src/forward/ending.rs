//! Endings that say what they mean: a goodbye that arrives, and a break that is seen as one (SPEC F9).

use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A client that was told goodbye has this long to stop sending.
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
/// What it may still send meanwhile.
const LINGER_MAX_BYTES: usize = 1 << 20;

/// Closes a connection on which the client may still be sending: what it was told would be lost if the kernel
/// answered its bytes with a reset.
pub(crate) async fn close_lingering(client: &mut TcpStream) {
    let drain = async {
        client.shutdown().await?;
        let (mut scrap, mut drained) = ([0; 4096], 0);
        while drained < LINGER_MAX_BYTES {
            match client.read(&mut scrap).await? {
                0 => break,
                count => drained += count,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // Either way the connection ends here.
    let _ = tokio::time::timeout(LINGER_TIMEOUT, drain).await;
}

/// Closes a connection so that the other side cannot take what it got for the whole: with a reset.
pub(crate) fn abort(stream: &TcpStream) {
    // A socket that refuses is closed already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

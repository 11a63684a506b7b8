//! Handshakes by rustls over an async stream, up to the keys.

use std::io;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::kernel::KernelConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ConnectionTrafficSecrets, Error, ExtractedSecrets, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::records::HEADER_BYTES;

/// What may lie unread during a handshake: certificate chains of nodes take 2 KiB.
const INCOMING_MAX_BYTES: usize = 64 * 1024;

/// What a handshake leaves behind.
pub(super) struct Established {
    pub(super) secrets: ExtractedSecrets,
    pub(super) rekey: Box<dyn Rekey>,
    /// Bytes behind the handshake.
    pub(super) unread: Vec<u8>,
    /// The other side's certificates.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) alpn: Option<Vec<u8>>,
}

/// The next keys of a direction.
pub(super) trait Rekey: Send + Sync {
    fn next_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
    fn next_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
}

impl<Data: Send + Sync> Rekey for KernelConnection<Data> {
    fn next_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_tx_secret()
    }

    fn next_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_rx_secret()
    }
}

/// A connection of rustls that gets and gives its bytes through our buffers.
trait Unbuffered {
    type Side;
    fn common(&self) -> &CommonState;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side>;
    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Side = rustls::client::ClientConnectionData;

    fn common(&self) -> &CommonState {
        self
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error> {
        let (secrets, connection) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(connection)))
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Side = rustls::server::ServerConnectionData;

    fn common(&self) -> &CommonState {
        self
    }

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Side> {
        self.process_tls_records(incoming)
    }

    fn into_keys(self) -> Result<(ExtractedSecrets, Box<dyn Rekey>), Error> {
        let (secrets, connection) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Box::new(connection)))
    }
}

/// Shakes hands as the side that dialled.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<Established> {
    let connection = UnbufferedClientConnection::new(config, name).map_err(failed)?;
    run(io, connection, Vec::new()).await
}

/// Shakes hands as the side that was dialled; `first` was read of the stream already.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    io: &mut S,
    config: Arc<ServerConfig>,
    first: &[u8],
) -> io::Result<Established> {
    run(io, UnbufferedServerConnection::new(config).map_err(failed)?, first.to_vec()).await
}

/// rustls is shown one record more at a time, never what follows the handshake: that is not for it to open.
async fn run<S, C>(io: &mut S, mut connection: C, mut incoming: Vec<u8>) -> io::Result<Established>
where
    S: AsyncRead + AsyncWrite + Unpin,
    C: Unbuffered,
{
    let mut outgoing = Vec::new();
    let mut shown = 0;
    loop {
        let UnbufferedStatus { discard, state } = connection.process(&mut incoming[..shown]);
        let mut blocked = false;
        let mut failure = None;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut outgoing, |into| data.encode(into))?,
            Ok(ConnectionState::TransmitTlsData(data)) => {
                io.write_all(&outgoing).await?;
                io.flush().await?;
                outgoing.clear();
                data.done();
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => blocked = true,
            Ok(_) => failure = Some(Error::General("the handshake ended before it was done".to_owned())),
            Err(error) => failure = Some(error),
        }
        incoming.drain(..discard);
        shown -= discard;
        if let Some(error) = failure {
            tell(io, &mut connection, &mut incoming[..shown]).await;
            return Err(failed(error));
        }
        if !blocked {
            continue;
        }
        if !connection.common().is_handshaking() {
            break;
        }
        shown += next_record(io, &mut incoming, shown).await?;
    }
    let chain = connection.common().peer_certificates().unwrap_or_default();
    let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
    let alpn = connection.common().alpn_protocol().map(<[u8]>::to_vec);
    let (secrets, rekey) = connection.into_keys().map_err(failed)?;
    Ok(Established { secrets, rekey, unread: incoming.split_off(shown), chain, alpn })
}

/// Makes sure that a whole record lies behind `from`; how long it is.
async fn next_record<S: AsyncRead + Unpin>(
    io: &mut S,
    incoming: &mut Vec<u8>,
    from: usize,
) -> io::Result<usize> {
    loop {
        let behind = &incoming[from..];
        if let Some((header, rest)) = behind.split_first_chunk::<HEADER_BYTES>() {
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            if rest.len() >= length {
                return Ok(HEADER_BYTES + length);
            }
        }
        if incoming.len() >= INCOMING_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a handshake that does not end"));
        }
        incoming.reserve(4096);
        if io.read_buf(incoming).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up during the handshake"));
        }
    }
}

/// Sends the alert of a failed handshake. A courtesy: the connection ends either way.
async fn tell<S: AsyncWrite + Unpin, C: Unbuffered>(io: &mut S, connection: &mut C, incoming: &mut [u8]) {
    let mut alert = Vec::new();
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process(incoming).state
        && encode(&mut alert, |into| data.encode(into)).is_ok()
        && io.write_all(&alert).await.is_ok()
    {
        let _ = io.shutdown().await;
    }
}

/// Appends what `write` wants to write.
fn encode(
    outgoing: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> io::Result<()> {
    let length = match write(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(error) => return Err(io::Error::other(error.to_string())),
        Ok(_) => return Ok(()),
    };
    let start = outgoing.len();
    outgoing.resize(start + length, 0);
    write(&mut outgoing[start..]).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(())
}

fn failed(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

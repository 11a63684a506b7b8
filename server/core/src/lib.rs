//! What a Server decides: tables of peers and links, pushes, identities, authorisation; no IO, no clock.

//! Several real agents joined by mesh links: in-memory connections, virtual time, the public interface only.

mod bounds;
mod chaos;
mod counts;
mod grants;
mod hostile;
mod printed;
mod servers;
mod walk;
mod world;

//! The Star Wars demo that Cilium's guides use: the Death Star's API, and the ships' image.
//!
//! Same paths, same words; written anew, since the lab pulls no images.

use std::io;

use clap::Args;

use super::agnhost::hostname;
use super::web::{self, Reply, Request};

/// What the Death Star says of itself.
const STATION: &str = r#"{
	"name": "Death Star",
	"hostname": "HOSTNAME",
	"model": "DS-1 Orbital Battle Station",
	"manufacturer": "Imperial Department of Military Research, Sienar Fleet Systems",
	"cost_in_credits": "1000000000000",
	"length": "120000",
	"crew": "342953",
	"passengers": "843342",
	"cargo_capacity": "1000000000000",
	"hyperdrive_rating": "4.0",
	"starship_class": "Deep Space Mobile Battlestation",
	"api": [
		"GET   /v1",
		"GET   /v1/healthz",
		"POST  /v1/request-landing",
		"PUT   /v1/cargobay",
		"GET   /v1/hyper-matter-reactor/status",
		"PUT   /v1/exhaust-port"
	]
}
"#;

/// What the Death Star's last words are.
const EXPLOSION: &str = "Panic: deathstar exploded

goroutine 1 [running]:
main.HandleGarbage(0x2080c3f50, 0x2, 0x4, 0x425c0, 0x5, 0xa)
        /code/src/github.com/empire/deathstar/
        temp/main.go:9 +0x64
main.main()
        /code/src/github.com/empire/deathstar/
        temp/main.go:5 +0x85
";

/// The Death Star.
#[derive(Debug, Args)]
pub struct StarWars {
    #[arg(long, default_value_t = 80)]
    port: u16,
}

/// A web server with JSON, which ships and test servers run.
#[derive(Debug, Args)]
pub struct JsonMock {
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
}

impl StarWars {
    /// Serves for ever; the result is the exit code.
    pub fn run(&self) -> i32 {
        ended(web::serve(self.port, death_star))
    }
}

impl JsonMock {
    /// Serves for ever; the result is the exit code.
    pub fn run(&self) -> i32 {
        ended(web::serve(self.port, ship))
    }
}

fn ended(result: io::Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

fn death_star(request: &Request<'_>) -> Reply {
    let path = request.path.strip_suffix('/').unwrap_or(request.path);
    match (request.method, path) {
        ("GET" | "HEAD", "/v1") => Reply::json(STATION.replace("HOSTNAME", &hostname())),
        ("GET" | "HEAD", "/v1/healthz") => Reply::ok("OK\n".to_owned()),
        ("POST", "/v1/request-landing") => Reply::ok("Ship landed\n".to_owned()),
        ("PUT", "/v1/cargobay") => Reply::ok("Cargo accepted\n".to_owned()),
        ("GET" | "HEAD", "/v1/hyper-matter-reactor/status") => Reply::ok("OK\n".to_owned()),
        // One that is replaced at once: the station goes on.
        ("PUT", "/v1/exhaust-port") => Reply::text("503 Service Unavailable", EXPLOSION.to_owned()),
        (
            _,
            "/v1"
            | "/v1/healthz"
            | "/v1/request-landing"
            | "/v1/cargobay"
            | "/v1/hyper-matter-reactor/status"
            | "/v1/exhaust-port",
        ) => Reply::text("405 Method Not Allowed", "Method Not Allowed\n".to_owned()),
        _ => Reply::not_found(),
    }
}

fn ship(request: &Request<'_>) -> Reply {
    let id =
        |id: u8, body: &str| Reply::json(format!("[{{\"id\": {id}, \"body\": \"{body}\"}}]\n"));
    match request.path {
        "/" => Reply::json(format!("{{\"hostname\": \"{}\"}}\n", hostname())),
        "/public" => id(1, "public information"),
        "/private" => id(2, "secret information"),
        _ => Reply::not_found(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, path: &str) -> Reply {
        let peer = ([127, 0, 0, 1], 1).into();
        death_star(&Request { method, path, query: "", peer })
    }

    #[test]
    fn the_death_star_lets_ships_land_and_has_a_weak_spot() {
        let check = |method, path, status: &str, body: &str| {
            let reply = ask(method, path);
            assert!(reply.status.starts_with(status), "{method} {path}: {reply:?}");
            assert!(reply.body.starts_with(body), "{method} {path}: {reply:?}");
        };
        check("POST", "/v1/request-landing", "200", "Ship landed\n");
        check(
            "PUT",
            "/v1/exhaust-port",
            "503",
            "Panic: deathstar exploded\n\ngoroutine 1 [running]:",
        );
        check("GET", "/v1/", "200", "{\n\t\"name\": \"Death Star\"");
        check("GET", "/v1/exhaust-port", "405", "Method Not Allowed");
        check("GET", "/v2", "404", "404 page not found");
        let station: serde_json::Value = serde_json::from_str(&ask("GET", "/v1").body).unwrap();
        assert_eq!(station["model"], "DS-1 Orbital Battle Station");
    }
}

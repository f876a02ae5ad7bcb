//! Installs the custom resources and brings older ones up to date.

use std::collections::BTreeMap;

use api::crd::FIELD_MANAGER_OPERATOR;
use api::crd::manifest::{SchemaVersion, crds};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::wait::{await_condition, conditions};

/// A custom resource could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Reading, creating or replacing failed.
    #[error("cannot install the custom resource {name}")]
    Write {
        /// Name of the definition.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// The API server did not say that it serves it.
    #[error("the API server does not serve the custom resource {name}")]
    Establish {
        /// Name of the definition.
        name: String,
        /// Why.
        source: Box<kube::runtime::wait::Error>,
    },
}

/// Makes the API server serve every custom resource. Returns once it does.
pub async fn install(client: &kube::Client) -> Result<(), InstallError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for wanted in crds() {
        let name = wanted.metadata.name.clone().unwrap_or_default();
        install_one(&api, &name, wanted).await.map_err(|source| InstallError::Write {
            name: name.clone(),
            source: Box::new(source),
        })?;
    }
    for wanted in crds() {
        let name = wanted.metadata.name.unwrap_or_default();
        await_condition(api.clone(), &name, conditions::is_crd_established())
            .await
            .map_err(|source| InstallError::Establish { name, source: Box::new(source) })?;
    }
    Ok(())
}

/// Creates a definition, or replaces one of an older schema; one of a newer schema is left alone,
/// so that operators of two versions do not fight while one replaces the other.
async fn install_one(
    api: &Api<CustomResourceDefinition>,
    name: &str,
    wanted: CustomResourceDefinition,
) -> kube::Result<()> {
    let params =
        PostParams { field_manager: Some(FIELD_MANAGER_OPERATOR.to_owned()), dry_run: false };
    loop {
        let written = match api.get_opt(name).await? {
            None => api.create(&params, &wanted).await,
            Some(installed) if SchemaVersion::of(&installed) >= SchemaVersion::of(&wanted) => {
                return Ok(());
            }
            Some(installed) => api.replace(name, &params, &upgrade(installed, &wanted)).await,
        };
        match written {
            Ok(_) => {
                tracing::info!(name, "installed custom resource");
                return Ok(());
            }
            // Someone else wrote it meanwhile: look again.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
    }
}

/// The installed definition with the wanted schema; what others keep in its metadata stays.
fn upgrade(
    mut installed: CustomResourceDefinition,
    wanted: &CustomResourceDefinition,
) -> CustomResourceDefinition {
    let labels: &mut BTreeMap<String, String> = installed.metadata.labels.get_or_insert_default();
    labels.extend(wanted.metadata.labels.clone().unwrap_or_default());
    installed.metadata.managed_fields = None;
    installed.spec = wanted.spec.clone();
    installed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_keeps_what_is_not_ours() {
        let [wanted, ..] = &crds()[..] else { panic!("there are definitions") };
        let mut installed = wanted.clone();
        let metadata = &mut installed.metadata;
        metadata.resource_version = Some("7".to_owned());
        metadata.labels = Some(BTreeMap::from([("helm".to_owned(), "yes".to_owned())]));
        installed.spec.versions.clear();
        let upgraded = upgrade(installed, wanted);
        assert_eq!(upgraded.spec, wanted.spec);
        assert_eq!(upgraded.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(SchemaVersion::of(&upgraded), SchemaVersion::of(wanted));
        assert_eq!(upgraded.metadata.labels.unwrap()["helm"], "yes");
    }
}

"""``prefect deployment run full-pipeline``: a deployment's name is enough when it is the only one so called.

Stock Prefect wants ``FLOW/DEPLOYMENT``. This plugin (entry point group ``prefect.plugins``, switched on by
``[tool.prefect]`` in pyproject.toml) teaches the client a name without a slash; names with one go the stock way.
"""

from typing import Any

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.plugins import register_hook

PREFECT_PLUGIN_API_REQUIRES = ">=0.1,<1"


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Install the look-up by bare name; called once by Prefect when it is imported."""
    stock = PrefectClient.read_deployment_by_name
    if getattr(stock, "takes_bare_names", False):
        return

    async def read_deployment_by_name(self: PrefectClient, name: str) -> Any:
        """Find a deployment by ``FLOW/DEPLOYMENT``, or by the deployment's name alone."""
        if "/" not in name:
            wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
            found = await self.read_deployments(deployment_filter=wanted, limit=2)
            if len(found) > 1:
                raise ValueError(f"several deployments are called {name!r}: say which as FLOW/{name}")
            if found:
                return found[0]
            name = f"{name}/{name}"
        return await stock(self, name)

    read_deployment_by_name.takes_bare_names = True  # type: ignore[attr-defined]
    PrefectClient.read_deployment_by_name = read_deployment_by_name  # type: ignore[assignment, method-assign]
